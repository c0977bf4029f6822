"""Copies the configurations and weights of the repository into the package, where ``ovseg.io.shipped`` finds them."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShipped(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there they are in the clone
            weights = Path("weights/toy").glob("*.safetensors")  # no other file that someone has put there
            for file in sorted([*Path("configs").rglob("*.*"), *weights]):
                if file.is_file():
                    target = Path(self.build_lib, "ovseg", file)
                    self.mkpath(str(target.parent))
                    self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithShipped})
