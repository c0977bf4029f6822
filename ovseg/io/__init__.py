"""Access to images, files and devices of the machine."""
