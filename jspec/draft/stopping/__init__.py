"""What decides whether another level is drafted, one file each."""
