"""The README's own examples can be used as they stand, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from irl.config import Config
from irl.scenario import Scenario
from irl.sections import validated

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_minimal_study_is_a_study_and_the_scenario_one_of_it():
    study, scenario = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL))
    config = validated(Config, study, "README.md")
    asked = [change.part for change in validated(Scenario, scenario, "README.md").changes]
    assert asked[0].name in config.data.state and asked[1].action in config.data.actions
    assert set(asked[1].where) <= set(config.data.state)
    assert config.anchor.action == "none" and list(config.data.state) == [
        "country",
        "had",
        "watched",
        "price",
        "season",
    ]


def test_links_lead_to_headings():
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    headings = [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]
    links = re.findall(r"\]\(#([^)]*)\)", TEXT)
    assert len(links) > 5 and not [link for link in links if link not in headings]


def test_scripts_that_are_named_exist():
    named = set(re.findall(r"scripts/\w+\.(?:py|sh)", TEXT))
    assert len(named) > 10
    assert not [name for name in named if not (Path(__file__).resolve().parents[1] / name).is_file()]
