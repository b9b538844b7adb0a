"""Findings of a preflight: what is well, what may fail, what is certain to. Problems are told all at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from onecopy.core.errors import CloudError
from onecopy.targets.preflight import Finding


@dataclass
class Report:
    findings: list[Finding] = field(default_factory=list[Finding])
    extended: bool = False
    """The Kubernetes version is in extended support."""

    def ok(self, check: str, text: str) -> None:
        self.findings.append(Finding(check, "ok", text))

    def warn(self, check: str, text: str, fix: str | None = None) -> None:
        self.findings.append(Finding(check, "warning", text, fix))

    def problem(self, check: str, text: str, fix: str) -> None:
        self.findings.append(Finding(check, "problem", text, fix))

    @property
    def warnings(self) -> list[str]:
        return [_with_fix(found) for found in self.findings if found.level == "warning"]

    def raise_problems(self) -> None:
        """Raises CloudError with every problem found."""
        problems = [found for found in self.findings if found.level == "problem"]
        if problems:
            more = "".join(f"\n  - {_with_fix(found)}" for found in problems)
            raise CloudError(
                f"the account cannot take this stack:{more}", hint="nothing was made; correct and plan again"
            )


def _with_fix(found: Finding) -> str:
    return f"{found.message}; {found.fix}" if found.fix else found.message
