"""`image-to-3d keys`: API keys and their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.commands import Commands
from pipeline.cli.data_folder import DataOption, find_key, moment, opened_store, print_table, settings_for

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.jobs.model import ApiKey, KeyLimits

NameArgument = Annotated[str, typer.Argument(help="Name of the API key")]
Limit = Annotated[int | None, typer.Option(min=0, help="0 is no limit")]

keys = Commands(help="Create, show, list, revoke and limit API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(keys, name="keys")


@keys.command()
def create(
    name: NameArgument,
    data: DataOption = None,
    queued: Limit = None,
    running: Limit = None,
    per_minute: Limit = None,
    per_month: Limit = None,
    test: Annotated[
        bool, typer.Option("--test", help="A test key: answered at once with a fixed asset, counted nowhere")
    ] = False,
) -> None:
    """Create an API key and print it, this once, with the secret that signs its webhooks."""
    from pipeline.jobs.api_keys import make_key

    settings = settings_for(data)
    with opened_store(data) as store:
        limits = _changed(settings.default_limits, queued, running, per_minute, per_month)
        plain, record = make_key(name, limits=limits, is_test=test)
        store.add_key(record)
    typer.echo(plain)
    secret = _secret_of(record, data)
    typer.echo(f"Store the key now: it is not shown again. Its webhooks are signed with {secret}", err=True)


@keys.command()
def show(name: NameArgument, data: DataOption = None) -> None:
    """Show an API key's record and the secret that signs its webhooks. The key itself is stored nowhere."""
    from dataclasses import asdict

    from pipeline.jobs.api_keys import describe_limit

    with opened_store(data) as store:
        key = find_key(store, name)
    typer.echo(f"name            {key.name}")
    typer.echo(f"id              {key.id}")
    typer.echo(f"key             {key.shown}")
    typer.echo(f"created (UTC)   {moment(key.created_at)}")
    typer.echo(f"revoked (UTC)   {moment(key.revoked_at)}")
    for limit, number in asdict(key.limits).items():
        typer.echo(f"{limit.replace('_', ' '):<15} {describe_limit(number)}")
    typer.echo(f"webhook secret  {_secret_of(key, data)}")


@keys.command("rotate-secret")
def rotate_secret(name: NameArgument, data: DataOption = None) -> None:
    """Give an API key a new webhook secret and print it; the old one signs beside it for a day."""
    with opened_store(data) as store:
        key = store.rotate_secret(find_key(store, name).id)
    typer.echo(_secret_of(key, data))
    typer.echo("For a day its webhooks carry the signatures of both secrets.", err=True)


@keys.command("list")
def list_keys(data: DataOption = None) -> None:
    """List all API keys with their usage and limits."""
    with opened_store(data) as store:
        rows: list[tuple[object, ...]] = []
        for key in store.list_keys():
            use, limits = store.key_use(key.id), key.limits
            rows.append(
                (
                    key.name,
                    key.shown,
                    moment(key.created_at),
                    "in use" if key.revoked_at is None else f"revoked {moment(key.revoked_at)}",
                    _of(use.queued, limits.queued),
                    _of(use.running, limits.running),
                    _of(use.this_minute, limits.per_minute),
                    _of(use.this_month, limits.per_month),
                )
            )
    print_table(("NAME", "KEY", "CREATED (UTC)", "STATE", "QUEUED", "RUNNING", "MINUTE", "MONTH"), rows)


@keys.command()
def revoke(name: NameArgument, data: DataOption = None) -> None:
    """Revoke an API key at once; its running jobs continue."""
    with opened_store(data) as store:
        key = store.revoke_key(find_key(store, name).id)
    typer.echo(f"{key.name} is revoked")


@keys.command()
def limit(
    name: NameArgument,
    data: DataOption = None,
    queued: Limit = None,
    running: Limit = None,
    per_minute: Limit = None,
    per_month: Limit = None,
) -> None:
    """Change the limits of an API key; limits that are not given stay as they are."""
    from pipeline.jobs.api_keys import describe_limit

    with opened_store(data) as store:
        key = find_key(store, name)
        key = store.limit_key(key.id, _changed(key.limits, queued, running, per_minute, per_month))
    shown = {"queued": key.limits.queued, "running": key.limits.running}
    shown |= {"per minute": key.limits.per_minute, "per month": key.limits.per_month}
    typer.echo(f"{key.name}: " + ", ".join(f"{word} {describe_limit(n)}" for word, n in shown.items()))


def _secret_of(key: ApiKey, data: Path | None) -> str:
    """The secret that signs an API key's webhooks now."""
    from pipeline.secrets import load_master_keys
    from pipeline.webhooks.signing import WebhookSigner

    return WebhookSigner(load_master_keys(settings_for(data))).secret_of(key)


def _changed(
    limits: KeyLimits, queued: int | None, running: int | None, per_minute: int | None, per_month: int | None
) -> KeyLimits:
    """The limits, overridden by those that were given; 0 removes a limit."""
    from dataclasses import replace

    given = {"queued": queued, "running": running, "per_minute": per_minute, "per_month": per_month}
    return replace(limits, **{name: number or None for name, number in given.items() if number is not None})


def _of(used: int, limit: int | None) -> str:
    return f"{used}" if limit is None else f"{used}/{limit}"
