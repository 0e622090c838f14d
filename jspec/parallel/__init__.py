"""Many devices: meshes and shardings, memory, and joining the processes of a launch."""
