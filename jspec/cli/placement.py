"""Beside the other processes of a launch."""


def joined() -> bool:
    """Joins the launch; whether this is its first process, the one that speaks."""
    import jax

    from jspec.parallel.launch import join

    join()
    return jax.process_index() == 0
