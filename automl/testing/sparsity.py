"""The conformance kits of sparsification: one subclass, and a new pattern, criterion or form of an index is tested.

class TestDiagonal(PatternConformance):
    pattern = "diagonal"
    shapes = ((8, 8), (4, 4, 3, 3))
    misfits = ((8, 6),)
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from automl.compression.packing import pack_weights, unpack_weights
from automl.compression.sparsity import CRITERIA, atom_indices, magnitude, mask
from automl.testing.checks import global_state, refused, require
from search_spaces.errors import InputError
from search_spaces.number_formats import NumberFormat
from search_spaces.sparsity import Sparsity, sizes, stored, window_of

Shape = tuple[int, ...]


class PatternConformance:
    """What every pattern promises.

    Attributes:
        pattern: its name, as a policy has it.
        shapes: of weights that it fits.
        misfits: of weights that it must refuse.
        shares: of zeros; those that leave nothing of a shape are passed over.
    """

    pattern: str
    shapes: Sequence[Shape] = ((8, 16), (1, 4), (8, 4, 3, 3), (6, 4, 5), (4, 8, 1, 1))
    misfits: Sequence[Shape] = ()
    shares: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.9)

    def test_atoms_are_a_partition_of_the_weights(self) -> None:
        """Each weight is in one atom, and the atoms are as many as the arithmetic says."""
        for sparsity, shape in self._cases():
            places = atom_indices(shape, sparsity)
            require(tuple(places.shape[:2]) == sparsity.grid(shape), f"atoms of {shape} are not those of the grid")
            each_once = torch.equal(places.flatten().sort().values, torch.arange(places.numel()))
            require(each_once, f"atoms of {shape} miss weights or share them")

    def test_a_mask_holds_the_zeros_that_arithmetic_promises(self) -> None:
        """As many as `Sparsity.nonzeros` says, in whole atoms, of the lowest scores."""
        for sparsity, shape in self._cases():
            weight = _weight(shape)
            found = mask(magnitude(weight), sparsity)
            require(found.dtype == torch.bool and found.shape == weight.shape, "a mask is bool and like the weight")
            require(int(found.sum()) == sparsity.nonzeros(shape), f"{int(found.sum())} weights are left of {shape}")
            places = atom_indices(shape, sparsity)
            stay, scores = found.flatten()[places], magnitude(weight).flatten()[places].sum(-1)
            require(torch.equal(stay.all(-1), stay.any(-1)), f"an atom of {shape} is neither left nor zero")
            rivals = len(stay) if window_of(self.pattern) else 1
            for left, score in zip(stay.all(-1).reshape(rivals, -1), scores.reshape(rivals, -1), strict=True):
                if not left.all():
                    require(bool(score[left].min() >= score[~left].max()), f"a better atom of {shape} went")

    def test_of_equal_atoms_the_later_ones_go(self) -> None:
        """So that equal weights give equal masks everywhere."""
        for sparsity, shape in self._cases():
            found = mask(torch.ones(shape), sparsity)
            left = found.flatten()[atom_indices(shape, sparsity)].all(-1)
            rows = left if window_of(self.pattern) else left.reshape(1, -1)
            require(bool((rows[:, :-1] >= rows[:, 1:]).all()), f"an earlier atom of {shape} went")

    def test_zeros_stay_zeros(self) -> None:
        """Within an earlier mask, whatever the scores are now."""
        for shape in self.shapes:
            before: Tensor | None = None
            for seed, sparsity in enumerate(self._sparsities(shape)):
                found = mask(magnitude(_weight(shape, seed)), sparsity, within=before)
                require(before is None or not (found & ~before).any(), f"a zero of {shape} came back")
                before = found

    def test_what_is_left_is_stored_in_as_many_bits_as_promised(self) -> None:
        """Packed in every form and unpacked, as float32 and as codes; the form that is chosen is the smallest."""
        for sparsity, shape in self._cases():
            weight = _weight(shape)
            found = mask(magnitude(weight), sparsity)
            for bits in (32, 4):
                _check_packing(weight.masked_fill(~found, 0.0), found, sparsity, bits)

    def test_what_does_not_fit_is_refused_in_one_line(self) -> None:
        """By the arithmetic and by the mask."""
        for shape in self.misfits:
            sparsity = self._at(0.5)
            refused(partial(sparsity.atoms, shape))
            refused(partial(mask, torch.ones(shape), sparsity))

    def test_nothing_else_is_touched(self) -> None:
        """The scores, and the global generators; asked again, the mask is the same."""
        for sparsity, shape in self._cases():
            scores = magnitude(_weight(shape))
            copy, before = scores.clone(), global_state()
            found = mask(scores, sparsity)
            require(torch.equal(scores, copy), "the scores were changed")
            require(torch.equal(mask(scores, sparsity), found), "asked again, the mask is another")
            require(global_state() == before, "a global generator or the number of threads was changed")

    def _at(self, share: float) -> Sparsity:
        window = window_of(self.pattern)
        return Sparsity(self.pattern, 1 - window[0] / window[1] if window else share)

    def _sparsities(self, shape: Shape) -> Iterator[Sparsity]:
        for share in self.shares[:1] if window_of(self.pattern) else self.shares:
            sparsity = self._at(share)
            total = sparsity.grid(shape)[0] * sparsity.grid(shape)[1]
            if window_of(self.pattern) or share * total + 0.5 < total:
                yield sparsity

    def _cases(self) -> Iterator[tuple[Sparsity, Shape]]:
        for shape in self.shapes:
            for sparsity in self._sparsities(shape):
                yield sparsity, shape


class CriterionConformance:
    """What every entry of `CRITERIA` promises.

    Attributes:
        name: of the criterion.
    """

    name: str

    def test_scores_are_like_the_weight(self) -> None:
        """At least 0, finite, more precise than the weight; and a weight of 0 scores 0."""
        weight, gradient = _weight((6, 4, 3, 3)), _weight((6, 4, 3, 3), seed=1)
        weight[0] = 0.0
        scores = CRITERIA[self.name].score(weight * 1e-30, gradient)
        require(scores.shape == weight.shape and scores.dtype == torch.float64, "scores are float64 like the weight")
        require(bool((scores >= 0).all() and scores.isfinite().all()), "scores are at least 0 and finite")
        require(bool((scores[0] == 0).all()), "it costs nothing to set a weight of 0 to 0")
        require(bool((scores[1:] > 0).all()), "small weights all score 0")

    def test_the_sign_does_not_matter(self) -> None:
        """Of weights and gradients together: the network is the same."""
        weight, gradient = _weight((6, 8)), _weight((6, 8), seed=1)
        score = CRITERIA[self.name].score
        require(torch.equal(score(weight, gradient), score(-weight, -gradient)), "the sign matters")

    def test_gradients_that_are_missing_are_missed(self) -> None:
        """In one line, where it needs them; else it does without."""
        criterion, weight = CRITERIA[self.name], _weight((4, 4))
        if criterion.needs_gradient:
            refused(lambda: criterion.score(weight, None))
        else:
            require(torch.equal(criterion.score(weight, None), criterion.score(weight, weight)), "gradients matter")

    def test_nan_is_refused_in_one_line(self) -> None:
        """Where masks are made of the scores."""
        weight = _weight((4, 4))
        weight[1, 2] = torch.nan
        refused(lambda: mask(CRITERIA[self.name].score(weight, torch.ones(4, 4)), Sparsity("element", 0.5)))

    def test_nothing_else_is_touched(self) -> None:
        """Weight, gradient and the global generators; asked again, the scores are the same."""
        weight, gradient = _weight((6, 8)).requires_grad_(), _weight((6, 8), seed=1)
        copies, before = (weight.detach().clone(), gradient.clone()), global_state()
        scores = CRITERIA[self.name].score(weight, gradient)
        require(not scores.requires_grad, "scores are not part of a computation to differentiate")
        require(torch.equal(weight, copies[0]) and torch.equal(gradient, copies[1]), "weight or gradient was changed")
        require(torch.equal(CRITERIA[self.name].score(weight, gradient), scores), "asked again, scores are others")
        require(global_state() == before, "a global generator or the number of threads was changed")


class FormConformance:
    """What every form of an index promises.

    Attributes:
        form: its name.
        cases: sparsities and shapes that it can store.
    """

    form: str
    cases: Sequence[tuple[Sparsity, Shape]] = (
        (Sparsity("element", 0.0), (3, 5)),
        (Sparsity("element", 0.3), (8, 4, 3, 3)),
        (Sparsity("element", 0.99), (16, 32)),
        (Sparsity("filter", 0.5), (8, 4, 3, 3)),
        (Sparsity("filter", 0.0), (1, 4)),
        (Sparsity("block:2x4", 0.7), (8, 4, 3, 3)),
        (Sparsity("column", 0.5), (1, 6)),
    )

    def test_size_and_round_trip(self) -> None:
        """As many bits as the arithmetic says, and every mask comes back: the best, the first and the last atoms."""
        for sparsity, shape in self.cases:
            rising = torch.arange(1.0, 1 + _weight(shape).numel()).reshape(shape)
            for weight in (_weight(shape), rising, rising.flip(0)):
                found = mask(magnitude(weight), sparsity)
                for bits in (32, 1, 5):
                    _check_packing(weight.masked_fill(~found, 0.0), found, sparsity, bits, self.form)

    def test_damage_is_an_input_error_or_other_weights(self) -> None:
        """Nothing else is raised by a buffer of the right size; one of another size is refused."""
        generator = torch.Generator().manual_seed(0)
        for sparsity, shape in self.cases:
            found = mask(magnitude(_weight(shape)), sparsity)
            packed = pack_weights(_weight(shape).masked_fill(~found, 0.0), None, sparsity, mask=found, form=self.form)
            for _ in range(20):
                noise = bytes(torch.randint(256, (len(packed),), generator=generator).tolist())
                try:
                    unpack_weights(noise, shape, None, sparsity, form=self.form)
                except InputError as error:
                    require("\n" not in str(error), f"an error message is one line: {error}")
            for wrong in (packed[:-1], packed + b"\0"):
                refused(partial(unpack_weights, wrong, shape, None, sparsity, form=self.form))


def _check_packing(weight: Tensor, found: Tensor, sparsity: Sparsity, bits: int, form: str | None = None) -> None:
    """Packed in that form, or in every one, a weight has the promised size and comes back."""
    shape = tuple(weight.shape)
    number_format, side = None, {}
    values, has_zero = weight, True
    if bits != 32:
        # codes without a zero: binary where there is one bit
        number_format = NumberFormat(bits, "dorefa", "channel")
        values = torch.randint(1 << bits, shape, generator=torch.Generator().manual_seed(bits)).masked_fill(~found, 0)
        side, has_zero = {"scale": torch.rand(shape[0], generator=torch.Generator().manual_seed(1))}, False
    promised = sizes(shape, bits, sparsity, has_zero)
    side_bits = 0 if number_format is None else number_format.side_bits(shape)
    require(form is None or form in promised, f"weights {shape} with {sparsity} have no form {form!r}")
    packed = {}
    for each in promised if form is None else [form]:
        packed[each] = pack_weights(values, number_format, sparsity, mask=found, side=side, form=each)
        size = -(-(promised[each] + side_bits) // 8)
        require(len(packed[each]) == size, f"{each!r}: {len(packed[each])} bytes, {size} promised, of {shape}")
        again = unpack_weights(packed[each], shape, number_format, sparsity, form=each)
        require(torch.equal(again.weights, values), f"{each!r}: other weights come back, of {shape}")
        expected = torch.ones_like(found) if each == "dense" else found
        require(torch.equal(again.mask, expected), f"{each!r}: another mask comes back, of {shape}")
        same = again.side.keys() == side.keys() and all(torch.equal(again.side[name], side[name]) for name in side)
        require(same, f"{each!r}: other side data comes back")
    if form is None:
        chosen = len(packed[stored(shape, bits, sparsity, has_zero).form])
        require(chosen == min(map(len, packed.values())), f"the form chosen for {shape} is not the smallest")


def _weight(shape: Shape, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
