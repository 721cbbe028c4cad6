import json
import pickle

import pytest

from search_spaces.errors import InputError, did_you_mean
from search_spaces.policy import CompressionPolicy, LayerPolicy


def test_json_gives_the_policy_back() -> None:
    policy = CompressionPolicy.from_keep({"conv2": 0.5, "conv1": 0.3}, model="abc")
    again = CompressionPolicy.from_json(policy.to_json())
    assert again == policy
    assert again.digest == policy.digest
    assert json.loads(policy.to_json())["schema_version"] == 2


def test_digest_tells_policies_apart_but_not_their_order() -> None:
    first = CompressionPolicy.from_keep({"a": 0.5, "b": 0.25})
    assert first.digest == CompressionPolicy.from_keep({"b": 0.25, "a": 0.5}).digest
    assert first.digest != CompressionPolicy.from_keep({"a": 0.5, "b": 0.26}).digest


def test_a_policy_travels_between_processes() -> None:
    policy = CompressionPolicy.from_keep({"a": 0.5}, model="m")
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_a_policy_cannot_be_changed() -> None:
    policy = CompressionPolicy.from_keep({"a": 0.5})
    with pytest.raises(TypeError):
        policy.layers["a"] = LayerPolicy(keep=1.0)  # type: ignore[index]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_keep_ratio_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(InputError, match=r"in \(0, 1\]"):
        LayerPolicy(keep=keep)


@pytest.mark.parametrize("bits", [0, 17, -1, 8.0, 4.5, True, "8", float("nan")])
@pytest.mark.parametrize("name", ["weight_bits", "activation_bits"])
def test_bits_are_whole_numbers_from_1_to_16(name: str, bits: object) -> None:
    with pytest.raises(InputError, match=rf"{name} is a whole number from 1 to 16, got "):
        LayerPolicy(**{name: bits})  # type: ignore[arg-type]


def test_bits_are_read_and_written_under_the_same_schema() -> None:
    policy = CompressionPolicy({"a": LayerPolicy(keep=0.5, weight_bits=4), "b": LayerPolicy(activation_bits=1)})
    document = json.loads(policy.to_json())
    assert document["schema_version"] == 2
    assert document["layers"] == {"a": {"keep": 0.5, "weight_bits": 4}, "b": {"activation_bits": 1}}
    assert CompressionPolicy.from_json(policy.to_json()) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


EVERYTHING = LayerPolicy(
    keep=0.5,
    rank=(3, 4),
    factorisation="tucker2",
    sparsity=0.5,
    pattern="2:4",
    weight_bits=4,
    weight_scheme="codebook",
    weight_granularity="group:32",
    activation_bits=8,
    activation_scheme="symmetric",
)


def test_all_that_a_layer_can_be_asked_for_is_read_and_written() -> None:
    policy = CompressionPolicy({"a": EVERYTHING})
    assert json.loads(policy.to_json())["layers"]["a"]["rank"] == [3, 4]
    assert CompressionPolicy.from_json(policy.to_json()) == policy
    assert CompressionPolicy.from_json(policy.to_json()).digest == policy.digest
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_a_policy_of_the_first_schema_means_the_same() -> None:
    text = '{"schema_version": 1, "model": null, "layers": {"a": {"keep": 0.5, "weight_bits": 4}}}'
    assert CompressionPolicy.from_json(text) == CompressionPolicy({"a": LayerPolicy(keep=0.5, weight_bits=4)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remove": 1}, "remove is true or false"),
        ({"remove": True, "weight_bits": 4}, "says all that is done to a block"),
        ({"rank": 0}, "a rank is a whole number of at least 1"),
        ({"rank": ()}, "a rank is a whole number of at least 1"),
        ({"rank": 4, "factorisation": "svdd"}, "no factorisation 'svdd'; did you mean 'svd'"),
        ({"factorisation": "svd"}, "factorisation 'svd' needs rank"),
        ({"sparsity": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"sparsity": float("nan")}, r"in \[0, 1\), got nan"),
        ({"sparsity": 0.5, "pattern": "rows"}, "got 'rows'; did you mean 'row'"),
        ({"sparsity": 0.25, "pattern": "2:4"}, "has the sparsity 0.5, got 0.25; leave it out"),
        ({"weight_bits": 4, "weight_scheme": "binary"}, "'binary' has 1 bit, got 4"),
        ({"weight_bits": 4, "weight_granularity": "group:0"}, "'group:N' with N of at least 1, got 'group:0'"),
        ({"activation_bits": 2, "activation_scheme": "ternary"}, "activations are represented by one of"),
    ],
)
def test_what_makes_no_sense_for_a_layer_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerPolicy(**fields)  # type: ignore[arg-type]


def test_digests_tell_bits_apart_and_are_what_they_were_without() -> None:
    digests = {
        CompressionPolicy({"a": LayerPolicy(keep=0.5, weight_bits=weights, activation_bits=reads)}).digest
        for weights in (None, 4, 8)
        for reads in (None, 4, 8)
    }
    assert len(digests) == 9
    unchanged = "ec4eebc5afc6d66b2ec4e41d9d9be0d244a2395bad4de5c81d7c03ceec36c766"
    assert CompressionPolicy.from_keep({"a": 0.5, "b": 0.25}).digest == unchanged


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a policy is a JSON document"),
        ("[" * 100_000, "a policy is a JSON document"),
        ("[]", "'schema_version', 'model' and 'layers'"),
        ('{"schema_version": 1, "layers": 3}', "'schema_version', 'model' and 'layers'"),
        ('{"schema_version": 9, "layers": {}}', "a policy has schema 9, made by a newer Trimtab"),
        ('{"schema_version": 1, "model": 5, "layers": {}}', "is a digest or null"),
        ('{"schema_version": 1, "layers": {"a": 0.5}}', "layer 'a' of a policy is an object"),
        ('{"schema_version": 1, "layers": {"a": {"keeep": 0.5}}}', "unknown key 'keeep'; did you mean 'keep'"),
        ('{"schema_version": 1, "layers": {"a": {"keep": "x"}}}', "keep is a number, got 'x'"),
        ('{"schema_version": 1, "layers": {"a": {"keep": true}}}', "keep is a number, got True"),
        ('{"schema_version": 1, "layers": {"a": {"weight_bits": true}}}', "weight_bits is a number, got True"),
        (
            '{"schema_version": 1, "layers": {"a": {"weight_bits": 8.0}}}',
            "layer 'a' of a policy: weight_bits is a whole",
        ),
        (
            '{"schema_version": 1, "layers": {"a": {"activation_bits": 0}}}',
            "layer 'a' of a policy: activation_bits is a",
        ),
        ('{"schema_version": 1, "layers": {"a": {"weight_bit": 8}}}', "did you mean 'weight_bits'"),
        ('{"schema_version": 2, "layers": {"a": {"pattern": 4}}}', "pattern is a text, got 4"),
        ('{"schema_version": 2, "layers": {"a": {"rank": "8"}}}', "rank is a number or a list of two, got '8'"),
        ('{"schema_version": 2, "layers": {"a": {"remove": 1}}}', "remove is a truth value, got 1"),
        ('{"schema_version": 2, "layers": {"a": {"rank": 2.5}}}', "a rank is a whole number of at least 1"),
        ('{"schema_version": 2, "layers": {"a": {"pattern": "row"}}}', "the pattern 'row' needs a sparsity"),
        ('{"schema_version": 2, "layers": {"a": {"pattern": "4:2"}}}', "N is from 1 to M, got '4:2'"),
        ('{"schema_version": 2, "layers": {"a": {"weight_scheme": "fp16"}}}', "needs weight_bits"),
        ('{"schema_version": 1, "layers": {"a": {"keep": 2}}}', "layer 'a' of a policy: a layer keeps a share"),
        ('{"schema_version": 1, "layers": {"a": {"keep": NaN}}}', "layer 'a' of a policy: a layer keeps a share"),
    ],
)
def test_a_damaged_policy_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        CompressionPolicy.from_json(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_file_that_cannot_be_read_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=r"gone\.json"):
        CompressionPolicy.load(tmp_path / "gone.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.json"):
        CompressionPolicy.load(tmp_path / "binary.json")


def test_did_you_mean_lists_everything_where_nothing_is_close() -> None:
    assert did_you_mean("zzz", ["lenet5", "vgg11"]) == "; known: lenet5, vgg11"
    assert did_you_mean("vgg1", ["lenet5", "vgg11"]) == "; did you mean 'vgg11'?"
    assert did_you_mean("x", []) == ""
