"""Great Expectations' own pages about a check, for the steward alone: written to a folder, loading nothing.

The engine's pages fetch styles, scripts and a newsletter form from several servers when they are opened; who opens a
hospital's report is nobody's business, so all of that is taken out and a policy in the page forbids it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from pathlib import Path
from typing import Any

from schemas.contract import DataContract
from schemas.errors import OperationError
from tasks.contract.engine import expectation_suite
from tasks.contract.suite import CheckReport, Finding

_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    "<style>body{font:15px/1.5 system-ui,sans-serif;margin:1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #8888;padding:.3rem .5rem;text-align:left}"
    ".modal,.navbar,.show-hide,button,footer,#ge-cta-footer,input,label{display:none}"
    '.fa-check-circle::before{content:"passed";color:#080}.fa-times::before{content:"FAILED";color:#c00}'
    '.fa-exclamation-triangle::before{content:"not judged";color:#c60}</style>'
)


def write_data_docs(contract: DataContract, report: CheckReport, folder: Path) -> Path:
    """Writes the check and the suite as pages, and the suite as JSON; returns the page to open.

    Files are readable by their owner alone: they hold counts of rows.

    Raises:
        OperationError: `docs-unwritable`.
    """
    from great_expectations.render.renderer import ExpectationSuitePageRenderer, ValidationResultsPageRenderer

    suite = expectation_suite(contract)
    result = _validation_result(suite, report)
    pages = {
        "index.html": _closed(_view(ValidationResultsPageRenderer(run_info_at_end=True).render(result))),
        "suite.html": _closed(_view(ExpectationSuitePageRenderer().render(suite))),
        "suite.json": suite_json(contract),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, text in pages.items():
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                out.write(text)
    except OSError as error:
        raise OperationError(
            "docs-unwritable", f"The pages cannot be written: {error.strerror}.", "Name another folder."
        ) from None
    return folder / "index.html"


def suite_json(contract: DataContract) -> str:
    """Returns the suite in Great Expectations' own JSON, as a steward's tools open it."""
    return json.dumps(expectation_suite(contract).to_json_dict(), indent=2, default=str) + "\n"


def _validation_result(suite: Any, report: CheckReport) -> Any:
    import great_expectations as gx
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

    found = {f.rule: f for f in report.findings}
    results = [_result(e.configuration, found[e.meta["rule"]], report.rows) for e in suite.expectations]
    passed = sum(bool(result.success) for result in results)
    moment = dt.datetime.now(dt.UTC).isoformat()
    return ExpectationSuiteValidationResult(
        success=report.verdict.passed,
        results=results,
        suite_name=suite.name,
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(results) - passed,
            "success_percent": 100.0 * passed / len(results),
        },
        meta={
            "run_id": {"run_name": "consilium site contract check", "run_time": moment},
            "great_expectations_version": gx.__version__,
            "batch_kwargs": {},
            "validation_time": moment,
        },
    )


def _result(configuration: Any, finding: Finding, rows: int) -> Any:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

    counts = {}
    if finding.rows is not None:
        share = 100.0 * finding.rows / rows if rows else 0.0
        counts = {"element_count": rows, "unexpected_count": finding.rows, "unexpected_percent": share}
    if finding.rule == "cohort:rows":
        counts = {"observed_value": rows}
    return ExpectationValidationResult(
        success=finding.passed,
        expectation_config=configuration,
        result=counts,
        exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
    )


def _view(document: Any) -> str:
    from great_expectations.render.view import DefaultJinjaPageView

    return str(DefaultJinjaPageView().render(document))


def _closed(page: str) -> str:
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.S | re.I)
    page = re.sub(r"<(?:link|img|iframe)\b[^>]*>", "", page, flags=re.S | re.I)
    page = re.sub(r"url\([^)]*\)", "none", page, flags=re.I)
    page = re.sub(r'\s(?:href|src|action)="(?!#)[^"]*"', "", page, flags=re.I)
    return page.replace("<head>", "<head>" + _POLICY, 1)
