"""The setuptools plugin: a project's models become part of its wheel (docs/build_step.md).

    [build-system]
    requires = ["setuptools>=77", "torch-transpiler"]
    build-backend = "setuptools.build_meta"

setuptools calls it for every project that is built where this package is installed; those that list no
`[[tool.transpile.models]]` are left alone.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Command, Distribution
from setuptools.command.bdist_wheel import bdist_wheel

from transpiler.errors import TranspileErrors
from transpiler.project import Project, read_project
from transpiler.project_build import Built, build_models, path_file, put_in_place, wheel_tag

COMMAND = "transpile_models"


def finalize(distribution: Distribution) -> None:
    """The entry point of `setuptools.finalize_distribution_options`: adds the command to those of a build."""
    try:
        project = read_project(distribution.src_root or os.curdir)
    except TranspileErrors as error:
        raise SystemExit(str(error)) from None
    if not project.models:
        return
    build = distribution.get_command_class("build")
    names = [name for name, _ in build.sub_commands]
    if COMMAND not in names:
        commands = [*build.sub_commands, (COMMAND, None)]
        distribution.cmdclass["build"] = type("build", (build,), {"sub_commands": commands})
    distribution.cmdclass[COMMAND] = TranspileModels
    if not distribution.ext_modules:
        distribution.cmdclass["bdist_wheel"] = WheelOfModels
        # The libraries belong into the part of a wheel that depends on the platform.
        distribution.has_ext_modules = lambda: True


class WheelOfModels(bdist_wheel):
    """A wheel for any Python 3 on one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tag that all libraries in it keep."""
        command = self.get_finalized_command(COMMAND)
        if not command.built:  # an editable wheel is named before anything is built
            tag: tuple[str, str, str] = super().get_tag()
            return tag
        python, abi, platform = wheel_tag(command.built).split("-")
        return python, abi, self.plat_name if self.plat_name_supplied else platform


class TranspileModels(Command):
    """The part of `build` that transpiles. Keeps to the protocol `setuptools.command.build.SubCommand`."""

    description = "transpile the models that pyproject.toml lists"
    user_options: tuple[tuple[str, str | None, str], ...] = ()
    editable_mode = False

    def initialize_options(self) -> None:
        """Called by setuptools before options are set."""
        self.build_lib: str = ""
        self.built: tuple[Built, ...] = ()

    def finalize_options(self) -> None:
        """Called by setuptools when options are set."""
        self.build_lib = self.get_finalized_command("build").build_lib

    @property
    def project(self) -> Project:
        return read_project(self.distribution.src_root or os.curdir)

    def run(self) -> None:
        """Transpile, and copy the packages to where the wheel is gathered, or where an editable install finds them.

        Raises:
            SystemExit: a model cannot be transpiled or its tests fail; with the report.
        """
        project = self.project
        try:
            self.built = build_models(project, lambda line: self.announce(line, 2))
            if self.editable_mode:
                self._make_importable(project)
            else:
                self._copy()
        except TranspileErrors as error:
            raise SystemExit(str(error)) from None

    def _copy(self) -> None:
        for item in self.built:
            # Nothing of an earlier build may be left there.
            shutil.rmtree(Path(self.build_lib, *item.model.parents, item.model.package), ignore_errors=True)
            for inside, path in item.files().items():
                target = Path(self.build_lib, inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def _make_importable(self, project: Project) -> None:
        build_py = self.get_finalized_command("build_py")
        for item in self.built:
            if item.model.parents:
                put_in_place(item, project.root / build_py.get_package_dir(".".join(item.model.parents)))
        if lines := path_file(self.built):
            # In editable mode this is the folder that becomes the wheel.
            folder = Path(self.get_finalized_command("install").install_lib)
            name = self.distribution.get_name().replace("-", "_")
            (folder / f"__editable__.{name}_models.pth").write_text(lines, encoding="utf-8")

    def get_source_files(self) -> list[str]:
        """What an sdist needs to build the models."""
        project = self.project
        files = {file for model in project.models for file in model.files()}
        for glob in {glob for model in project.models for glob in model.depends}:
            files |= {path.relative_to(project.root).as_posix() for path in project.root.glob(glob) if path.is_file()}
        return sorted(files)

    def get_outputs(self) -> list[str]:
        """The files of the packages in the build folder; none in editable mode."""
        if self.editable_mode:
            return []
        return [str(Path(self.build_lib, inside)) for item in self.built for inside in item.files()]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing is a mere copy of a source file."""
        return {}
