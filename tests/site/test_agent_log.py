"""A hospital's log holds its own lines and warnings; what a library tells about its work may describe data."""

from __future__ import annotations

import logging

from infra.agents import may_log


def _record(name: str, level: int) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, "x", (), None)


def test_a_librarys_information_is_left_out_even_if_it_sets_its_own_level() -> None:
    from great_expectations.data_context.types import base

    assert base.logger.level == logging.INFO  # why the level of the root logger does not do
    assert not may_log(_record(base.logger.name, logging.INFO))
    assert not may_log(_record("consiliumlike", logging.INFO))
    assert may_log(_record(base.logger.name, logging.WARNING))
    assert may_log(_record("consilium.site", logging.INFO))
