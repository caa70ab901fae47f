"""A site's part of the release: recompute the last opening, publish its ledger, witness everybody's checkpoints."""

from __future__ import annotations

from schemas.canonical import sha256_hex
from schemas.envelope import sign_envelope
from schemas.errors import EvidenceError, PeerError
from schemas.layout import ANSWER, ledger_key, release_key
from schemas.ledger import ModelReleased, StatisticsAnswered
from schemas.messages import Checkpoint, Closing, ModelRelease, StatisticsRelease, Witness
from schemas.plan import Agreement
from schemas.statistics import StatisticsPlan
from site_agents.context import SiteContext
from site_agents.epoch import public_epoch
from site_agents.lineage import model_before
from tasks.questions import recompute_answer
from tasks.server_step import state_digest, weights_safetensors
from tasks.storage.mailbox import read_signed
from tasks.study_log import PublishedLog


class SiteClosing:
    """This site's part of closing a study or a question: publish the ledger, witness everybody's checkpoints."""

    def __init__(self, context: SiteContext[Agreement]) -> None:
        self.context = context
        self.plan: Agreement = context.plan

    def close(self, body: ModelReleased | StatisticsAnswered) -> None:
        """Enters the end into the ledger and erases this site's share of the key: nothing is opened any more."""
        self.context.ledger.append_once(self.plan.study, body)
        self.context.keystore.erase_secrets()

    def publish_checkpoint(self) -> None:
        """Publishes the rest of this site's ledger and a signed checkpoint over it."""
        key = ledger_key(self.plan.study, self.context.name, False, "checkpoint.json")
        position = self.context.publish_ledger()
        # Of what was published: another study of this site may have entered something since.
        self.context.outbox.answer(key, lambda: self.context.ledger.sign_checkpoint(self.plan.study, position))

    @property
    def closed(self) -> bool:
        """Whether the coordinator has listed the checkpoints that close the study."""
        return self.context.store.exists(self._closing_key())

    def witness(self) -> None:
        """Verifies every log that the coordinator's closing lists, up to the listed checkpoint, and signs that it did.

        Raises:
            PeerError: `wrong-closing` if this site's own checkpoint is left out or another one; `log-forked` if a log
                does not verify: names its owner.
        """
        coordinator, study = self.plan.coordinator, self.plan.study
        closing = read_signed(
            self.context.store, self._closing_key(), Closing, study, coordinator.identity_key, coordinator.name
        )
        if closing is None:
            raise PeerError("wrong-closing", coordinator.name, "there is no signed closing.")
        listed = dict(closing.predicate.checkpoints)
        own = self.context.outbox.stored(ledger_key(study, self.context.name, False, "checkpoint.json"))
        if own is None or listed.get(self.context.name) != sha256_hex(own) or coordinator.name not in listed:
            raise PeerError("wrong-closing", coordinator.name, "the closing does not list this site's checkpoint.")
        keys = {site.name: site.identity_key for site in self.plan.sites} | {coordinator.name: coordinator.identity_key}
        for owner, digest in closing.predicate.checkpoints:
            if owner not in keys or self.verify_log(owner, keys[owner], owner == coordinator.name) != (owner, digest):
                raise PeerError("wrong-closing", coordinator.name, f"it lists another checkpoint of {owner}.")
        message = Witness(witness=self.context.name, closing=closing.digest, seen=closing.predicate.checkpoints)
        key = ledger_key(study, self.context.name, False, "witness.json")
        signing = self.context.home.identity.signing
        self.context.outbox.answer(key, lambda: sign_envelope(message, study, signing))

    def _closing_key(self) -> str:
        return ledger_key(self.plan.study, self.plan.coordinator.name, True, "closing.json")

    def verify_log(self, owner: str, key_hex: str, coordinator: bool) -> tuple[str, str]:
        store, study = self.context.store, self.plan.study
        key = ledger_key(study, owner, coordinator, "checkpoint.json")
        checkpoint = read_signed(store, key, Checkpoint, study, key_hex, owner)
        if checkpoint is None:
            raise PeerError("checkpoint-missing", owner, "its checkpoint is not in the store.")
        try:
            PublishedLog(store, study, owner, key_hex, coordinator).verify(checkpoint.predicate)
        except EvidenceError as error:
            raise PeerError("log-forked", owner, f"its log does not verify: {error.message}") from None
        return owner, checkpoint.digest


class SiteRelease(SiteClosing):
    """This site's part of the release of one study."""

    def __init__(self, context: SiteContext) -> None:
        super().__init__(context)
        self.study_context = context

    def verify(self) -> None:
        """Recomputes the released model from the published openings, and checks the study log up to its checkpoint.

        Raises:
            PeerError: the release does not follow from what this site recomputed; names the coordinator.
        """
        plan = self.study_context.plan
        coordinator, study = plan.coordinator, plan.study
        key = release_key(study, "release.json")
        release = read_signed(self.context.store, key, ModelRelease, study, coordinator.identity_key, coordinator.name)
        if release is None:
            raise PeerError("release-missing", coordinator.name, "there is no signed release.")
        given = release.predicate
        last = plan.mechanism.rounds + 1 if given.evaluation is not None else given.rounds
        lineage = model_before(self.study_context, last + 1)
        weights = sha256_hex(weights_safetensors(plan, lineage.state))
        if (given.model, given.weights) != (state_digest(lineage.state), weights):
            raise PeerError("wrong-release", coordinator.name, "the released model does not follow from the openings.")
        self.verify_log(coordinator.name, coordinator.identity_key, coordinator=True)
        self.close(ModelReleased(release=given))


class SiteAnswer(SiteClosing):
    """This site's part of closing a question: its answer must follow from the opened sum."""

    def __init__(self, context: SiteContext[StatisticsPlan]) -> None:
        super().__init__(context)
        self.question_context = context

    def verify(self) -> None:
        """Recomputes the answer from the published opening, and checks the study log up to its checkpoint.

        Raises:
            PeerError: `release-missing`, `wrong-release`, naming the coordinator.
        """
        plan, context = self.question_context.plan, self.question_context
        coordinator, key = plan.coordinator, release_key(plan.study, ANSWER)
        given = read_signed(
            context.store, key, StatisticsRelease, plan.study, coordinator.identity_key, coordinator.name
        )
        if given is None:
            raise PeerError("release-missing", coordinator.name, "there is no signed answer.")
        expected = recompute_answer(
            context.store,
            plan,
            lambda epoch: public_epoch(context, epoch),
            context.home.settings.options.bulk_processes,
        )
        if given.predicate != expected:
            raise PeerError("wrong-release", coordinator.name, "the answer does not follow from the opened sum.")
        self.verify_log(coordinator.name, coordinator.identity_key, coordinator=True)
        self.close(StatisticsAnswered(release=given.predicate))
