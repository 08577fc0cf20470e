"""`recsys serve`, and `recsys retrieve` and `recsys score`, which ask a server."""

import json as json_text
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from recsys.bundle import BundleStore
from recsys.cli.bundles import StoreArgument, check_store
from recsys.cli.console import USER_ERROR, print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.config import ConfigError
from serving.client import Candidates, Client, Scores, ServingError
from serving.pipeline import Pipeline
from serving.server import Settings, run

FILTER_HELP = """A predicate on item attributes: {"kind": "equal", "attribute": "category", "value": "shoes"}."""
AddressOption = Annotated[str, typer.Option("--address", help="host:port of the server.")]
UserOption = Annotated[str | None, typer.Option("--user", help="A user id, as in the raw logs.")]
HistoryOption = Annotated[str | None, typer.Option("--history", help="Item ids, oldest first: a,b,c.")]
HistoryTimesOption = Annotated[
    str | None,
    typer.Option("--history-times", help="When they happened, as the log writes times: t,t,t; in any order."),
]
HistoryFeatureOption = Annotated[
    list[str] | None,
    typer.Option("--history-feature", help="An event feature of them: name=value, a JSON list with one for each."),
]
TimeOption = Annotated[int | None, typer.Option("--time", help="When this is asked; nothing from then on is read.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds to wait for the answer.")]


def serve(
    store: StoreArgument,
    port: Annotated[int, typer.Option("--port", help="0 takes any free port.")] = 50051,
    host: Annotated[str, typer.Option("--host", help="Where to listen; this machine alone by default.")] = "127.0.0.1",
    bundle: Annotated[str, typer.Option("--bundle", help="A label, or the beginning of a bundle id.")] = "stable",
    allow: Annotated[list[str] | None, typer.Option("--allow", help="Packages of yours whose code may run.")] = None,
) -> None:
    """Serve a bundle over gRPC until SIGTERM, which lets calls under way finish."""
    with user_errors():
        check_store(store)
        run(
            lambda: Pipeline.load(BundleStore(store).open(bundle), allowed=allow or ()),
            Settings(host=host, port=port),
            say=lambda line: typer.echo(line),
        )


def retrieve(
    k: Annotated[int, typer.Option("--k", help="How many candidates.")] = 10,
    user: UserOption = None,
    history: HistoryOption = None,
    history_times: HistoryTimesOption = None,
    history_feature: HistoryFeatureOption = None,
    time: TimeOption = None,
    feature: Annotated[list[str] | None, typer.Option("--feature", help="A user feature: name=value.")] = None,
    exclude: Annotated[str | None, typer.Option("--exclude", help="Item ids to leave out: a,b,c.")] = None,
    filter: Annotated[str | None, typer.Option("--filter", help=FILTER_HELP)] = None,  # noqa: A002
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Do not leave out what the user has seen.")] = False,
    address: AddressOption = "127.0.0.1:50051",
    timeout: TimeoutOption = 5.0,
    json: JsonOption = False,
) -> None:
    """Ask a server for candidates, by user id, history or user features."""
    with user_errors(), _refusals(), Client(address, timeout_s=timeout) as client:
        if k < 1:
            raise ConfigError(f"--k: got {k}, accepted: 1 or more")
        catalogue = _part(client, "retrieval").catalogue
        answer = client.retrieve(
            k=k,
            user=_one_id(user, catalogue.users_are_texts, "--user"),
            history=_ids(history, catalogue.items_are_texts, "--history"),
            history_times=_ids(history_times, are_texts=False, option="--history-times"),
            history_features=_lists(history_feature, "--history-feature"),
            time=time,
            features=_values(feature, "--feature"),
            exclude_seen=not keep_seen,
            excluded=_ids(exclude, catalogue.items_are_texts, "--exclude") or (),
            filter=filter,
        )
    _show_candidates(answer, json)


def score(
    items: Annotated[str | None, typer.Option("--items", help="Item ids: a,b,c.")] = None,
    user: UserOption = None,
    history: HistoryOption = None,
    history_times: HistoryTimesOption = None,
    history_feature: HistoryFeatureOption = None,
    time: TimeOption = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="A feature: name=value, or a JSON list with a value for each row."),
    ] = None,
    address: AddressOption = "127.0.0.1:50051",
    timeout: TimeoutOption = 5.0,
    json: JsonOption = False,
) -> None:
    """Ask a server for the probabilities of items for a user, in a context."""
    with user_errors(), _refusals(), Client(address, timeout_s=timeout) as client:
        catalogue = _part(client, "ranking").catalogue
        item_ids = _ids(items, catalogue.items_are_texts, "--items")
        answer = client.score(
            user=_one_id(user, catalogue.users_are_texts, "--user"),
            items=item_ids,
            columns=_lists(column, "--column"),
            history=_ids(history, catalogue.items_are_texts, "--history"),
            history_times=_ids(history_times, are_texts=False, option="--history-times"),
            history_features=_lists(history_feature, "--history-feature"),
            time=time,
        )
    _show_scores(answer, item_ids, json)


def _part(client: Client, name: str) -> Any:
    part = getattr(client.bundle(), name)
    if part is None:
        raise ConfigError(f"the served bundle has no {name} part")
    return part


def _show_candidates(answer: Candidates, json: bool) -> None:
    rows: list[dict[str, Any]] = answer.to_pandas().to_dict("records")
    if json:
        fallback = None if answer.fallback is None else answer.fallback.reason.value
        place = {"bundle_id": answer.bundle_id, "token": answer.attribution_token.hex(), "fallback": fallback}
        print_json({"candidates": rows, "user_known": answer.user_known} | place)
        return
    if answer.fallback is not None:
        say(f"fallback: {answer.fallback.detail}")
    print_table(f"{len(rows)} candidates of bundle {answer.bundle_id[:12]}", rows)


def _show_scores(answer: Scores, items: list[Any] | None, json: bool) -> None:
    names: list[Any] = items if items and len(items) == len(answer.scores) else list(range(len(answer.scores)))
    values = [dict(zip(answer.tasks, map(float, row), strict=True)) for row in answer.scores]
    rows: list[dict[str, Any]] = [{"row": str(name)} | value for name, value in zip(names, values, strict=True)]
    if json:
        print_json({"scores": rows, "bundle_id": answer.bundle_id, "token": answer.attribution_token.hex()})
    else:
        print_table(f"scores of bundle {answer.bundle_id[:12]}", rows)


@contextmanager
def _refusals() -> Iterator[None]:
    """A refused call is the user's error: one line with the status and what the server says."""
    try:
        yield
    except ServingError as error:
        say(f"error: {error}")
        raise typer.Exit(USER_ERROR) from None


def _one_id(text: str | None, are_texts: bool, option: str) -> int | str | None:
    found = _ids(text, are_texts, option) if text is not None and not are_texts else None
    return text if found is None else found[0]


def _ids(text: str | None, are_texts: bool, option: str) -> list[Any] | None:
    """Ids of an option, as the catalogue has them: numbers or texts."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if are_texts:
        return parts
    wrong = [part for part in parts if not part.lstrip("-").isdigit()]
    if wrong or not parts:
        what = "times" if option == "--history-times" else "ids of this bundle"
        raise ConfigError(f"{option}: {what} are whole numbers, got {wrong[0] if wrong else text!r}")
    return [int(part) for part in parts]


def _values(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """`name=value` options; a value is JSON where it can be, else text."""
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise ConfigError(f"{option} {pair!r} is not of the form name=value")
        try:
            values[name] = json_text.loads(text)
        except ValueError:
            values[name] = text
    return values


def _lists(pairs: list[str] | None, option: str) -> dict[str, list[Any]]:
    """Columns of the given rows, or of one row, which is repeated."""
    return {name: value if isinstance(value, list) else [value] for name, value in _values(pairs, option).items()}
