"""`consilium coordinator bucket`: what each participant may, printed or applied, as large as the server takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.buckets import make_policy
from infra.cli import main
from infra.settings import load_settings
from schemas.errors import ConsiliumError, OperationError
from schemas.options import CoordinatorSettings
from tests.storage.s3_servers import S3Server, running_moto, write_credentials

FEW, MANY = ("mercy", "general"), tuple(f"hospital-{number}" for number in range(20))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_moto(tmp_path_factory.mktemp("moto")) as running:
        running.client.create_bucket(Bucket="study")
        yield running


@pytest.fixture
def home(server: S3Server, tmp_path: Path) -> Path:
    keys = write_credentials(tmp_path, "coordinator", "secret-1")
    asked = ["--store", "s3://study/one", "--credentials", str(keys), "--endpoint", str(server.settings.endpoint)]
    asked += ["--home", str(tmp_path / "coordinator")]
    assert CliRunner().invoke(main, ["coordinator", "init", *asked], catch_exceptions=False).exit_code == 0
    return tmp_path / "coordinator"


def bucket(home: Path, *asked: str) -> Result:
    command = ["coordinator", "bucket", "--home", str(home), *asked]
    return CliRunner().invoke(main, command, env={"CONSILIUM_DEBUG": "1"}, catch_exceptions=False)


def test_conditions_on_writes_are_refused_while_mlflow_writes_among_the_studys_names(home: Path) -> None:
    path = home / "services.json"
    services = json.loads(path.read_text())
    assert services["mlflow_artifacts"] == "s3://study/one/mlflow"
    assert "s3:if-none-match" in bucket(home, *FEW, "--enforce").stdout
    # As an older version made it: MLflow goes on where it was, and the server is not told to refuse it.
    path.write_text(json.dumps(services | {"mlflow_artifacts": None}))
    assert "if-none-match" not in bucket(home, *FEW).stdout
    with pytest.raises(ConsiliumError, match="MLflow keeps its artifacts under coordinator/") as caught:
        bucket(home, *FEW, "--enforce")
    assert caught.value.code == "artifacts-in-study"
    assert "Copy coordinator/mlflow to mlflow in the store" in str(caught.value.remedy)


def test_a_policy_that_amazon_would_refuse_is_not_made_for_it(home: Path) -> None:
    settings = load_settings(CoordinatorSettings, home / "config.json")
    assert settings.s3 is not None
    for endpoint in (None, "https://s3.eu-central-1.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn"):
        amazon = settings.model_copy(update={"s3": settings.s3.model_copy(update={"endpoint": endpoint})})
        assert make_policy(amazon, FEW, "arn:aws:iam:::user/{name}", enforce=True)
        with pytest.raises(
            OperationError, match=r"policy for 21 participants has [0-9]+ bytes; Amazon takes 20480"
        ) as e:
            make_policy(amazon, MANY, "arn:aws:iam:::user/{name}", enforce=False)
        assert e.value.code == "policy-too-large"
        assert "--identity" in str(e.value.remedy)
    # Another server may take more: it is said, and the server decides.
    printed = bucket(home, *MANY)
    assert "Amazon and some other servers refuse a policy of this size" in printed.stderr
    assert len(json.loads(printed.stdout)["Statement"]) == 21 * 4
    assert bucket(home, *FEW).stderr == ""
    # As printed it is as it may be pasted: where its spaces would be too many, they are left out.
    for names in (FEW, MANY[:9]):
        assert len(bucket(home, *names).stdout) <= 20480


def test_policies_of_the_users_grant_what_the_buckets_policy_does(home: Path, server: S3Server) -> None:
    whole = json.loads(bucket(home, *FEW, "--enforce").stdout)["Statement"]
    apart = json.loads(bucket(home, *FEW, "--enforce", "--identity").stdout)
    assert sorted(apart) == ["coordinator", *sorted(FEW)]
    for name, policy in apart.items():
        mine = [s for s in whole if s["Principal"]["AWS"] == [f"arn:aws:iam:::user/{name}"]]
        granted = [{key: value for key, value in s.items() if key not in ("Sid", "Principal")} for s in mine]
        assert [{key: value for key, value in s.items() if key != "Sid"} for s in policy["Statement"]] == granted
        assert not any("Principal" in statement for statement in policy["Statement"])
    large = json.loads(bucket(home, *MANY, "--enforce", "--identity").stdout)
    # A managed policy of Amazon's holds 6144 characters.
    assert max(len(json.dumps(policy, separators=(",", ":"))) for policy in large.values()) < 6144
    # With the owner's keys the lifecycle is set, and the bucket's policy is left alone.
    server.client.put_bucket_policy(Bucket="study", Policy='{"Version":"2012-10-17","Statement":[]}')
    owner = ("--owner", str(server.settings.credentials_file), "--ciphertext-days", "30")
    assert len(json.loads(bucket(home, *MANY, "--identity", *owner).stdout)) == 21
    assert json.loads(server.client.get_bucket_policy(Bucket="study")["Policy"])["Statement"] == []
    rules = server.client.get_bucket_lifecycle_configuration(Bucket="study")["Rules"]
    assert sorted(rule["ID"] for rule in rules) == ["ciphertexts", "unfinished-uploads"]
    assert "--ciphertext-days needs --owner" in bucket(home, *FEW, "--ciphertext-days", "30").output
