"""The report beside an exported file: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ullage.errors import StorageError
from ullage.export.proof import TOLERANCES, Comparison
from ullage.runtime.file_info import FileInfo


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the network.

    Attributes:
        file: Name of the file.
        format: As the user asked for it.
        info: What the file says of itself.
        file_bytes: Its size.
        comparisons: Network against file on real images.
        images_from: Where those came from.
        map_before: mAP50-95 of the network on ``data``; None when no data set was given.
        map_after: The same of the file.
        failures: What is beyond the tolerance; empty when the file is as it should be.
        libraries: Versions of what wrote and ran it.
    """

    file: str
    format: str
    info: FileInfo
    file_bytes: int
    comparisons: tuple[Comparison, ...]
    images_from: str
    map_before: float | None
    map_after: float | None
    failures: tuple[str, ...]
    libraries: dict[str, str]

    def to_json(self) -> str:
        """Return all of it as JSON."""
        values: dict[str, Any] = asdict(self)
        for one, comparison in zip(values["comparisons"], self.comparisons, strict=True):
            one["agreement"] = comparison.agreement
        values["tolerance"] = asdict(TOLERANCES[self.info.precision])
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        """Return it as Markdown."""
        info = self.info
        size = "any batch and size" if info.dynamic else f"batch {info.batch}, {info.size_hw[0]}x{info.size_hw[1]}"
        lines = [
            f"# {self.file}",
            "",
            f"{info.model_name}, {len(info.names)} classes, {info.precision}, {size}, {self.file_bytes:,} bytes"
            + (", suppression inside" if info.suppression else ""),
            "",
            f"Network against file on images of {self.images_from}:",
            "",
            "| input | images | scores differ by | boxes differ by | found by network | by file | by both |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {one.size_hw[0]}x{one.size_hw[1]} | {one.images} | {one.score_diff:.1e} | {one.box_diff_px:.1e} px "
                f"| {one.found_network} | {one.found_file} | {one.matched} |"
                for one in self.comparisons
            ),
            "",
        ]
        if self.map_before is not None and self.map_after is not None:
            lines += [f"mAP50-95: network {self.map_before:.4f}, file {self.map_after:.4f}", ""]
        verdict = "beyond tolerance: " + "; ".join(self.failures) if self.failures else "within tolerance"
        versions = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        return "\n".join([*lines, f"{verdict[0].upper()}{verdict[1:]}. Written by {versions}.", ""])


def write_report(report: ExportReport, path: Path) -> Path:
    """Write ``FILE.json`` and ``FILE.md`` beside an exported file; return the latter.

    Raises:
        StorageError: They cannot be written.
    """
    page = path.with_name(f"{path.name}.md")
    try:
        path.with_name(f"{path.name}.json").write_text(report.to_json(), encoding="utf-8")
        page.write_text(str(report), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the report '{page}': {error.strerror or error}") from None
    return page
