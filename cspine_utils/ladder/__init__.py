"""From crops of one vertebra to whole necks as hospitals see them: what has to be shown at each step, and the numbers.

    python -m cspine_utils.ladder --help

Each rung trains one model (crops-hard none) and judges it once, on synthetic patients that neither trained it nor chose
its epoch:

crops-easy                      one vertebra beside its intact twin, from scratch
crops-torn                      the same with torn masks, from the weights of crops-easy
crops-standard                  standard fractures, from the weights of crops-torn
crops-longer                    the same crops in another order, from the weights of crops-standard
crops-hard                      the model of crops-longer on hard crops, not trained again
necks-balanced                  whole easy necks, every second vertebra of some broken, from the weights of crops-torn
necks-easy                      whole easy necks, broken as often as in the RSNA-2022 data, from necks-balanced
necks-standard                  the same of the standard set, from the mean weights of necks-easy and crops-longer
few-boxes                       the necks of necks-easy straight from crops-torn, boxes told of 12 % of them, all broken
few-maps                        the same with label maps of 80; a network learns from these and draws the other masks

But for the first one, training tears the masks (`mask_jitter`), and every model is also judged with torn masks; under
`--controls` a rung of necks also with masks that a network has drawn, as the last one throughout.
"""

from .plan import RUNGS, sets
from .profiles import PROFILES, Profile
from .rungs import climb

__all__ = ["PROFILES", "RUNGS", "Profile", "climb", "sets"]
