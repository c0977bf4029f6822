"""Your own data: a folder of images, a folder of masks and a list of classes, described by one small YAML file."""
