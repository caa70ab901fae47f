"""Our protocol passes the suite that every secure sum has to pass."""

from __future__ import annotations

from pathlib import Path

from tests.secure_sum.protocol import SecureSum
from tests.secure_sum.suite import SecureSumSuite
from tests.secure_sum.threshold_ckks import ThresholdCkksSum


class TestThresholdCkks(SecureSumSuite):
    def make(self, length: int, folder: Path) -> SecureSum:
        return ThresholdCkksSum(5, length, folder)


class TestThresholdCkksOverTwoProcesses(SecureSumSuite):
    def make(self, length: int, folder: Path) -> SecureSum:
        return ThresholdCkksSum(4, length, folder, processes=2)
