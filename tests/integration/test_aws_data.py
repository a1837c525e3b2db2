"""What is cut out of botocore's descriptions of AWS is what we never call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.regions import EndpointResolver

from cwsink.flusher.aws_data import AwsData

OPERATIONS = [
    *("CreateLogGroup", "CreateLogStream", "DescribeLogStreams"),
    *("GetLogEvents", "PutLogEvents", "PutRetentionPolicy"),
]


@pytest.fixture
def whole() -> Any:
    return Loader()


@pytest.fixture
def reduced(whole: Any) -> AwsData:
    return AwsData(list(whole.search_paths))


def logs(loader: Any) -> Any:
    return ServiceModel(loader.load_service_model("logs", "service-2"), "logs")


def described(shape: Shape | None) -> object:
    """What a shape says, without words to people; none of ours refers to itself."""
    if shape is None:
        return None
    members = {name: described(member) for name, member in getattr(shape, "members", {}).items()}
    return shape.name, shape.type_name, shape.serialization, shape.metadata, members, described(shape_in(shape))


def shape_in(shape: Shape) -> Shape | None:
    return getattr(shape, "member", None) or getattr(shape, "value", None)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_that_we_call_is_as_botocore_knows_it(whole: Any, reduced: AwsData, operation: str) -> None:
    """Its request, its answer and its errors are the same."""
    theirs, ours = (logs(loader).operation_model(operation) for loader in (whole, reduced))
    assert ours.http == theirs.http
    assert described(ours.input_shape) == described(theirs.input_shape)
    assert described(ours.output_shape) == described(theirs.output_shape)
    assert [described(each) for each in ours.error_shapes] == [described(each) for each in theirs.error_shapes]
    assert ours.error_shapes, "there are some to compare"


def test_the_service_is_signed_for_and_addressed_as_before(whole: Any, reduced: AwsData) -> None:
    """What its metadata says, and its rules for endpoints, are the same."""
    assert logs(reduced).metadata == logs(whole).metadata
    rules = [loader.load_service_model("logs", "endpoint-rule-set-1") for loader in (whole, reduced)]
    assert rules[0] == rules[1]


def test_only_what_we_call_is_kept(reduced: AwsData) -> None:
    """The other operations are gone: this is what it is for."""
    assert sorted(logs(reduced).operation_names) == OPERATIONS


@pytest.mark.parametrize("service", ["logs", "sts", "portal.sso", "oidc", "no-such-service"])
def test_a_service_has_the_same_endpoint_in_every_region(whole: Any, reduced: AwsData, service: str) -> None:
    """In each partition, also of a service that is listed nowhere."""
    theirs, ours = (EndpointResolver(loader.load_data("endpoints")) for loader in (whole, reduced))
    assert ours.get_available_partitions() == theirs.get_available_partitions()
    regions = [region for partition in whole.load_data("endpoints")["partitions"] for region in partition["regions"]]
    for region in [*regions, "eu-new-1"]:
        assert ours.construct_endpoint(service, region) == theirs.construct_endpoint(service, region)


@pytest.mark.parametrize("service", ["sts", "sso", "sso-oidc"])
def test_a_service_that_gives_credentials_has_its_whole_model(whole: Any, reduced: AwsData, service: str) -> None:
    """Which operations botocore's providers call is their business."""
    assert reduced.load_service_model(service, "service-2") == whole.load_service_model(service, "service-2")


@pytest.mark.parametrize("content", [{"partitions": 7}, {"partitions": [{"services": []}]}, {}, []])
def test_endpoints_that_look_different_are_left_to_botocore(tmp_path: Path, content: object) -> None:
    """A file that we do not understand is loaded whole."""
    (tmp_path / "endpoints.json").write_text(json.dumps(content))
    assert AwsData([str(tmp_path)]).load_data("endpoints") == content


@pytest.mark.parametrize("content", [{"operations": {}}, {"operations": {}, "shapes": {}}, {"shapes": 1}, []])
def test_a_model_that_looks_different_is_left_to_botocore(tmp_path: Path, content: object) -> None:
    """A user's own model may lack what we look for."""
    folder = tmp_path / "logs" / "2014-03-28"
    folder.mkdir(parents=True)
    (folder / "service-2.json").write_text(json.dumps(content))
    assert AwsData([str(tmp_path)]).load_data("logs/2014-03-28/service-2") == content
