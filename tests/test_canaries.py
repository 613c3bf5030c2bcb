import pytest
from canaries import CANARIES, ROOT


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.mistake)
def test_the_mistake_can_still_be_made(canary):
    text = (ROOT / canary.file).read_text()
    assert canary.old in text and canary.old != canary.new
    assert (ROOT / "tests" / canary.tests).is_file()
