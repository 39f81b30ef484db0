"""`image-to-3d secrets`: replace the deployment's master key."""

from __future__ import annotations

import typer

from pipeline.cli.commands import Commands
from pipeline.cli.data_folder import DataOption, opened_store, settings_for

secrets = Commands(help="Replace the master key, from which all other secrets are derived.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(secrets, name="secrets")


@secrets.command()
def rotate(data: DataOption = None) -> None:
    """Encrypt all saved buckets with the current master key, so that an older one can be removed.

    IMAGE_TO_3D_SECRET_KEYS lists the master keys, the current one first. To replace a key: put the new one in front,
    restart the service, run this command, then remove the old key and restart again. Running it twice does no harm.

    Removing a key also invalidates what was signed with it: links to files that were issued before the new key came
    first, and the webhook secret that receivers were given before. Remove it after the links have expired (one day by
    default) and after each receiver has its new webhook secret; until then, webhooks carry both signatures.
    """
    from pipeline.secrets import load_master_keys
    from pipeline.service import reencrypt_buckets, unreadable_bucket

    with opened_store(data) as store:
        rotation = reencrypt_buckets(store, load_master_keys(settings_for(data)))
    typer.echo(str(rotation))
    for name in rotation.unreadable:
        typer.echo(unreadable_bucket(name), err=True)
    if rotation.unreadable:
        raise typer.Exit(1)


@secrets.command()
def adopt(data: DataOption = None) -> None:
    """Let this machine's master key be one of the deployment's, where the deployment's own is lost.

    The machines of a deployment with a shared database have to have the same IMAGE_TO_3D_SECRET_KEYS; one that has
    another does not start. After the old key is lost, run this once with the new one.
    """
    from pipeline.deployment import secret_ids
    from pipeline.secrets import load_master_keys

    with opened_store(data) as store:
        store.knows_secret(secret_ids(load_master_keys(settings_for(data))), adopt=True)
    typer.echo("This machine's master key is now one of the deployment's.")
