"""The environment of the package: what is installed, and the installation of Detectron2; standard library only."""
