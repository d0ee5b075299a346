"""Advice in messages: doing what a message says has to succeed."""

import importlib
import pkgutil
import shlex

import pytest
import remedies
from command_line import call, refused, succeeds
from tiny import step_by_step

TABLES = [
    importlib.import_module(f"remedies.{module.name}")
    for module in pkgutil.iter_modules(remedies.__path__)
    if module.name != "remedy"
]
TRAINED = (
    *("captions in an unknown column", "a folder of class folders", "no autoencoder"),
    *("bare images for a model with words", "bare images and words wanted"),
    "a resolution between two multiples",
)
"""Remedies that train, for seconds; "norm groups that do not divide" is such a one too."""
CASES = [
    pytest.param(one, marks=[pytest.mark.slow] * (one.name in TRAINED), id=one.name)
    for table in TABLES
    for one in table.REMEDIES
]


@pytest.mark.parametrize("remedy", CASES)
@step_by_step()
def test_a_message_s_advice_succeeds(remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remedy.prepare(tmp_path)
    refused(call(*shlex.split(remedy.wrong)), *remedy.says)
    for line in remedy.then:
        succeeds(call(*shlex.split(line)))
