"""``jobrunner gc``: made for cron."""

import click

from jobrunner.cli.common import duration_option, json_option, open_data, print_json, reads
from jobrunner.config import Gc
from jobrunner.config_values import parse_size
from jobrunner.locks import FileLock
from jobrunner.service.gc import Report


@click.command()
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Keep the newest N ended jobs.")
@duration_option("--max-age", metavar="AGE", help="Keep what has ended within AGE, like 30d.")
@click.option(
    "--max-bytes", callback=reads(parse_size), metavar="SIZE", help="Keep the newest SIZE of files, like 10G."
)
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Say what was done.")
@click.pass_context
def gc(
    ctx: click.Context,
    keep: int | None,
    max_age: float | None,
    max_bytes: int | None,
    *,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Purge old jobs beyond the configured limits, with their files. Silent when all is well.

    Never touches a job that has not ended. Runs beside the server or without it.
    What it can't remove it names, and goes on with the rest.
    """
    house = open_data(ctx)
    configured = house.config.gc
    limits = Gc(
        keep=keep if keep is not None else configured.keep,
        max_age=max_age if max_age is not None else configured.max_age,
        max_bytes=max_bytes if max_bytes is not None else configured.max_bytes,
    )
    lock = FileLock(house.data_dir / "gc.lock")
    if not lock.acquire(wait=False):
        if verbose:
            click.echo("another gc is running in this data directory")
        return
    report = house.gc.run(limits, dry_run=dry_run)
    lock.release()
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "purged": len(report.purged),
                "freed_bytes": report.freed_bytes,
                "orphans": len(report.orphans),
                "cleared": len(report.cleared),
                "kept": report.kept,
                "failed": len(report.failures),
            }
        )
    else:
        _tell(report, dry_run=dry_run, verbose=verbose)
    if report.failures:
        raise click.ClickException("\n".join(f"can't remove {each.where}: {each.detail}" for each in report.failures))


def _tell(report: Report, *, dry_run: bool, verbose: bool) -> None:
    if dry_run:
        for purge in report.purged:
            click.echo(f"{purge.number}\t{purge.id}\t{purge.reason}\t{purge.disk_bytes}")
        for job_id in report.orphans:
            click.echo(f"-\t{job_id}\torphan\t-")
        for job_id in report.cleared:
            click.echo(f"-\t{job_id}\tscratch\t-")
    if verbose:
        done = "would purge" if dry_run else "purged"
        click.echo(
            f"{done} {len(report.purged)} jobs ({report.freed_bytes} bytes), {len(report.orphans)} orphaned "
            f"directories and {len(report.cleared)} scratch directories; {report.kept} ended jobs stay"
        )


COMMANDS = {"gc": gc}
