"""The hatchling build hook `transpile`: a project's models become part of its wheel (docs/build_step.md).

[build-system]
requires = ["hatchling", "torch-transpiler"]
build-backend = "hatchling.build"

[tool.hatch.build.hooks.transpile]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.plugin import hookimpl

from transpiler.errors import TranspileErrors
from transpiler.project import Project, read_project
from transpiler.project_build import Built, build_models, path_file, put_in_place, wheel_tag


class TranspileHook(BuildHookInterface):
    """Adds the packages to a wheel, and what they are made of to an sdist."""

    PLUGIN_NAME = "transpile"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build. Ends the build with the report if a model cannot be transpiled or its tests fail."""
        try:
            project = read_project(self.root)
            if self.target_name == "sdist":
                self._add_sources(project, build_data)
            elif self.target_name == "wheel":
                built = build_models(project, self.app.display_info)
                if version == "editable":
                    self._make_importable(project, built, build_data)
                elif built:
                    self._add_packages(built, build_data)
        except TranspileErrors as error:
            self.app.abort(str(error))

    def _add_sources(self, project: Project, build_data: dict[str, Any]) -> None:
        """Weights are often ignored by git, and hatchling leaves out what git ignores."""
        for model in project.models:
            globbed = [path for glob in model.depends for path in project.root.glob(glob) if path.is_file()]
            for path in {*(project.root / file for file in model.files()), *globbed}:
                build_data["force_include"][str(path)] = path.relative_to(project.root).as_posix()

    def _add_packages(self, built: tuple[Built, ...], build_data: dict[str, Any]) -> None:
        for item in built:
            # A copy that an editable install put among the sources is given the same files: hatchling finds it too.
            parent = self._parent_folder(item)
            folder = item.package
            if parent is not None and (parent / item.model.package).is_dir():
                folder = put_in_place(item, parent)
            for inside, path in item.files().items():
                build_data["force_include"][str(folder / path.relative_to(item.package))] = inside
        build_data["pure_python"] = False
        if "tag" not in build_data and not build_data["infer_tag"]:
            build_data["tag"] = wheel_tag(built)

    def _make_importable(self, project: Project, built: tuple[Built, ...], build_data: dict[str, Any]) -> None:
        """Packages inside of the project's own are copied among its sources, others found by a path file."""
        for item in built:
            if item.model.parents:
                put_in_place(item, self._parent_folder(item))
        if lines := path_file(built):
            self._scratch = tempfile.TemporaryDirectory(prefix="transpile-editable-")
            path = Path(self._scratch.name) / "models.pth"
            path.write_text(lines, encoding="utf-8")
            build_data["force_include_editable"][str(path)] = f"_{self.metadata.core.name}_models.pth"

    def _parent_folder(self, item: Built) -> Path | None:
        """The folder of the package that a model is put into; None if there is none, or it is put into no package."""
        bases = [*(Path(package).parent for package in self.build_config.packages), Path("src"), Path()]
        for base in bases if item.model.parents else ():
            folder = Path(self.root, base, *item.model.parents)
            if folder.is_dir():
                return folder
        return None


@hookimpl
def hatch_register_build_hook() -> type[TranspileHook]:
    """hatchling's way of asking for the hook."""
    return TranspileHook
