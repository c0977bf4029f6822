"""Weight files read without trust: nothing that a file chooses is called, and sizes are checked before memory is."""
