"""Images, files and the machine: what the package reads from and writes to."""
