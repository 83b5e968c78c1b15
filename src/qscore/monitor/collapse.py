"""Signs of a collapse, and of a divergence, by fixed thresholds."""

from dataclasses import dataclass, replace
from typing import Any, final

from qscore.monitor.measurement import Measurement

__all__ = ["DEAD_SHARE", "RANKME_SHARE", "STD_SHARE", "Watch"]

STD_SHARE = 0.05  # of 1 / sqrt(r)
RANKME_SHARE = 0.25  # of the largest so far
DEAD_SHARE = 0.5  # of all features


@final
@dataclass(frozen=True)
class Watch:
    """What earlier measurements leave behind for the judgement of later ones."""

    rankme: float = 0.0
    """The largest so far."""
    epoch: int = -1
    """When it was."""
    signs: tuple[str, ...] = ()
    """Those that the last measurement showed."""

    def judge(self, found: Measurement) -> tuple["Watch", Measurement, bool]:
        """Return the watch from now on, the measurement with its evidence, and whether a sign is new."""
        evidence = self._signs(found)
        after = replace(self, signs=tuple(evidence))
        if found.rankme > self.rankme:
            after = replace(after, rankme=found.rankme, epoch=found.epoch)
        return after, replace(found, evidence=tuple(evidence.values())), bool(set(evidence) - set(self.signs))

    def state_dict(self) -> dict[str, Any]:
        """Return the fields, for a checkpoint."""
        return {"rankme": self.rankme, "epoch": self.epoch, "signs": list(self.signs)}

    def _signs(self, found: Measurement) -> dict[str, str]:
        signs = {}
        if found.n_invalid:
            signs["invalid"] = (
                f"{found.n_invalid} of {found.n} representations hold NaN or infinity: the training has diverged"
            )
        if found.std_share < STD_SHARE:
            signs["std"] = (
                f"the standard deviation of the normalised representation is {found.std_share:.2%} of 1 / sqrt(r), "
                f"below {STD_SHARE:.0%}: all images look alike to the encoder"
            )
        if found.rankme < RANKME_SHARE * self.rankme:
            signs["rankme"] = (
                f"RankMe fell to {found.rankme:.1f}, below {RANKME_SHARE:.0%} of its {self.rankme:.1f} at epoch "
                f"{self.epoch}: few directions are left"
            )
        if found.dead_share > DEAD_SHARE:
            signs["dead"] = f"{found.n_dead} of {found.n_features} features are 0 for every image"
        return signs
