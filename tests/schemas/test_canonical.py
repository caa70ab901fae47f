"""Canonical bytes are RFC 8785's, whichever encoder wrote them."""

from __future__ import annotations

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.canonical import canonical_bytes, is_canonical

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.text('\x00\x1f\x7f"\\/\b\n\té€😀az')
KEYS = st.text() | st.text("aAzZé€😀\uffee", max_size=3)
VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def reference(value: dict[str, object]) -> bytes | None:
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except rfc8785.CanonicalizationError:
        return None


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no finding
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_the_quick_encoder_and_the_reference_agree_byte_for_byte(value: dict[str, object]) -> None:
    expected = reference(value)
    if expected is None:
        with pytest.raises(rfc8785.CanonicalizationError):
            canonical_bytes(value)
        assert not is_canonical(value, b"{}")
    else:
        assert canonical_bytes(value) == expected
        assert is_canonical(value, expected)


@pytest.mark.parametrize("value", [2**53, -(2**53), float("nan"), "\ud800", {"\udfff": 1}])
def test_what_has_no_canonical_form_is_nobodys(value: object) -> None:
    assert not is_canonical({"a": value}, b'{"a":1}')
