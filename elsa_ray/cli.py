"""The command line: a skin over the package. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from elsa_ray.config.errors import InputError
from elsa_ray.runtime.heap import keep_freed_memory
from elsa_ray.signals import Termination, terminable

# Newer typers carry their own click: the common base of what it raises for a wrong command line.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="elsa-ray",
    help="Fine-tune split language models over simulated edge networks, on Ray.\n\n"
    "Start with: elsa-ray run experiments/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
topology_app = typer.Typer(help="List, show, draw, check and make network topologies.", no_args_is_help=True)
app.add_typer(topology_app, name="topology")
device_app = typer.Typer(help="List and show device profiles, and measure this machine.", no_args_is_help=True)
app.add_typer(device_app, name="device")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the config, such as protocol.rounds=3."),
]
OutFolder = Annotated[
    str | None,
    typer.Option(
        "--out", help="Run folder; by default a new one under runs/. A URI (s3://, gs://, file://) gets a copy."
    ),
]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; else RAY_ADDRESS, else Ray is started here.")]


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="The experiment, a YAML file.")] = None,
    set_: Overrides = None,
    out: OutFolder = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan a round and its actors; train nothing.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Instead of CONFIG: go on with a run that was interrupted: its folder or URI."
        ),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show at the end where the wall time went.")] = False,
) -> None:
    """Train an experiment and write its records.

    Real training; simulated time and bytes are exact. Ends in a summary table and an HTML report. Ctrl-C, SIGTERM,
    a failure or a kill leave a run that --resume takes up after its last finished round, to the same bits; of its
    config only runtime can be changed, with --set.
    """
    from elsa_ray import api
    from elsa_ray.records.uri import StorageUri

    if resume is not None:
        given = {"CONFIG": config is not None, "--out": out is not None, "--dry-run": dry_run}
        for option, is_given in given.items():
            if is_given:
                raise InputError("--resume", f"a run together with {option}", f"a run's folder without {option}")
        api.resume(resume, overrides=set_ or (), address=address, console=Console(), profile=profile)
    elif config is None:
        raise InputError("CONFIG", "nothing", "an experiment's YAML file, or --resume RUN")
    elif dry_run:
        if out is not None:
            shown = StorageUri(out).shown
            raise InputError("--out", f"{shown} together with --dry-run", "one of both: a dry run writes nothing")
        if profile:
            raise InputError("--profile", "it together with --dry-run", "one of both: a dry run trains nothing")
        api.dry_run(config, overrides=set_ or (), address=address, console=Console())
    else:
        api.run(config, overrides=set_ or (), out=out, address=address, console=Console(), profile=profile)


@app.command()
def plan(config: ConfigPath, set_: Overrides = None, out: OutFolder = None) -> None:
    """Time an experiment without training it.

    The same config gives the same simulated seconds and bytes as a run; no weight is loaded.
    """
    from elsa_ray import api

    api.plan(config, overrides=set_ or (), out=out, console=Console())


@app.command()
def net(
    topology: Annotated[str, typer.Argument(metavar="TOPOLOGY", help="A topology's name or file.")],
    transfers: Annotated[Path, typer.Argument(metavar="TRANSFERS.csv", help="id,src,dst,num_bytes,start_seconds")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write: id,start_seconds,finish_seconds,seconds_alone")],
    model: Annotated[Literal["fluid", "tcp"], typer.Option(help="How transfers share links.")] = "fluid",
) -> None:
    """Say when transfers would finish on a network."""
    from elsa_ray.network import finish_times
    from elsa_ray.network.files import find_network
    from elsa_ray.network.transfers_csv import read_transfers_csv, write_finish_times_csv

    network = find_network(topology, roles_required=False)
    table = finish_times(network, read_transfers_csv(transfers), where=str(transfers), model=model)
    write_finish_times_csv(out, table)


TopologyName = Annotated[str, typer.Argument(metavar="T", help="A topology's name or file.")]
Clients = Annotated[int | None, typer.Option(help="Clients.", min=1)]
Edges = Annotated[int | None, typer.Option(help="Edge servers.", min=1)]


@topology_app.command("list")
def list_topologies() -> None:
    """Name the networks that come with the package, the generators, and the access profiles."""
    from elsa_ray.network.catalogue import catalogue_lines

    for line in catalogue_lines():
        Console().print(line, highlight=False)


@topology_app.command("show")
def show_topology(topology: TopologyName) -> None:
    """Tell a network's sizes, bandwidths and latencies."""
    from elsa_ray.network.check import describe
    from elsa_ray.network.files import find_network

    Console().print_json(data=describe(find_network(topology, roles_required=False)))


@topology_app.command("draw")
def draw(
    topology: TopologyName,
    out: Annotated[Path, typer.Option("--out", help="The picture, .svg or .png.")],
) -> None:
    """Draw a network, on the map where its routers have coordinates."""
    from elsa_ray.network.files import find_network
    from elsa_ray.network.nearest import nearest_edges
    from elsa_ray.records.drawing import MOST_CLIENTS_DRAWN, draw_topology

    network = find_network(topology, roles_required=False)
    edges = nearest_edges(network) if len(network.clients) <= MOST_CLIENTS_DRAWN else {}
    draw_topology(network, out, Path(topology).stem, edges)


@topology_app.command("check")
def check_topology(
    topology: TopologyName,
    capacity: Annotated[int | None, typer.Option(help="Most clients of one edge server.", min=1)] = None,
) -> None:
    """Check a network for a run: roles, positive figures, ways between all nodes, room for the clients."""
    from elsa_ray.network.check import check_network
    from elsa_ray.network.files import find_network

    network = find_network(topology, roles_required=False)
    findings = check_network(network, edge_capacity=capacity)
    if findings:
        raise InputError(topology, "; ".join(findings), "a network without such findings")
    Console().print(f"{topology}: nothing found")


@topology_app.command("make")
def make_topology(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A generator, or a topology's name or file.")],
    out: Annotated[Path, typer.Option("--out", help="YAML file to write.")],
    clients: Clients = None,
    edges: Edges = None,
    routers: Annotated[int | None, typer.Option(help="Of ring, grid, barabasi_albert, waxman.", min=1)] = None,
    access: Annotated[str | None, typer.Option(help="Profile of the clients, or shares: lte=0.5,wifi=0.5.")] = None,
    spread: Annotated[float | None, typer.Option(help="Of the clients' figures; 0 makes all equal.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.", min=0)] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the topology section.")
    ] = None,
) -> None:
    """Generate a network and write it as a file.

    Kinds: hierarchical, star, ring, grid, barabasi_albert, waxman. With a topology's name or file as KIND, clients and
    edge servers are attached to its routers.
    """
    from elsa_ray.network import make_network, save_network_yaml
    from elsa_ray.network.catalogue import topology_section

    options = {"clients": clients, "edges": edges, "routers": routers, "spread": spread}
    section = topology_section(kind, {**options, "access": access}, set_ or ())
    save_network_yaml(make_network(section, seed, Path()), out)


@device_app.command("list")
def list_devices() -> None:
    """Name the device profiles that come with the package."""
    from elsa_ray.records.devices import device_table

    Console().print(device_table())


@device_app.command("show")
def show_device(device: Annotated[str, typer.Argument(metavar="D", help="A profile's name or file.")]) -> None:
    """Tell a device's figures, each with its source."""
    from elsa_ray.records.devices import figure_table

    Console().print(figure_table(device))


@device_app.command("measure")
def measure(
    out: Annotated[Path, typer.Option("--out", help="YAML file to write; world.clients.device takes its name.")],
    threads: Annotated[int, typer.Option(help="Threads of the training.", min=1)] = 1,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What to measure.")] = "cpu",
) -> None:
    """Measure how fast this machine trains, and write it as a device profile.

    Takes about half a minute of CPU time. Power is not measured: state it in the file.
    """
    from elsa_ray.measure import measure_device, write_profile

    write_profile(measure_device(threads=threads, device=device, status=Console(stderr=True).print), out)
    show_device(str(out))


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="Rows, values and seeds on top of an experiment.")],
    out: Annotated[str | None, typer.Option("--out", help="Folder; by default runs/sweep-NAME.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at once, each in a process of its own.", min=1)] = 1,
    only: Annotated[list[str] | None, typer.Option(metavar="ROW", help="Run this row now; may stand again.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Run these seeds of the grid now, such as 0,1.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the runs.")] = False,
) -> None:
    """Run a grid of settings and seeds, and put it into a table.

    What is finished is not run again: after an interruption, a failure or a change of the grid, give the same command.
    """
    from elsa_ray.config.sweep import read_seeds
    from elsa_ray.sweep import sweep as sweep_grid

    chosen = read_seeds(seeds) if seeds is not None else None
    done = sweep_grid(grid, out=out, jobs=jobs, only=only or (), seeds=chosen, dry_run=dry_run, console=Console())
    if done.failed:
        raise typer.Exit(1)


@app.command()
def attack(
    config: ConfigPath,
    set_: Overrides = None,
    rounds: Annotated[int, typer.Option(help="Global rounds to train; the last one is attacked.", min=1)] = 2,
    clients: Annotated[int, typer.Option(help="Clients to attack, at most.", min=1)] = 8,
    codecs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Codecs by name, each attacked in place of the config's.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder; by default a new one under runs/.")] = None,
) -> None:
    """Attack the privacy of what an experiment would send.

    Trains a few rounds, then reads the payloads as a curious edge and as an eavesdropper would. Ends in a table.
    """
    from elsa_ray.attack import attack as attack_config

    attack_config(
        config, overrides=set_ or (), rounds=rounds, clients=clients, codecs=codecs, out=out, console=Console()
    )


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    format_: Annotated[Literal["table", "json", "csv", "md"], typer.Option("--format")] = "table",
) -> None:
    """Put the figures of several runs side by side, and where their time, bytes and energy went; of two the difference.

    json and csv have the figures of the first table, in plain units.
    """
    from elsa_ray.records.compare import compare_runs, print_comparison
    from elsa_ray.records.compare_breakdown import print_breakdowns

    print_comparison(compare_runs(runs), format_, Console())
    print_breakdowns(runs, format_, Console())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; by default report.html in the folder.")] = None,
) -> None:
    """Write a run's HTML report again."""
    from elsa_ray.records.report import write_report

    Console().print(f"report: {write_report(run, out)}", soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON schema of the config file."""
    from elsa_ray.config.load import config_schema

    Console().print_json(data=config_schema())


@app.command()
def doctor(
    address: Address = None,
    format_: Annotated[Literal["table", "json"], typer.Option("--format")] = "table",
) -> None:
    """Say what this machine or cluster can run, and what stands in the way.

    Packages, precision, memory, GPUs, nodes, the pools that a run would get, and how many clients fit.
    """
    from elsa_ray.doctor import examine, print_examination, to_json

    facts = examine(address)
    if format_ == "json":
        Console().print_json(to_json(facts))
    else:
        print_examination(facts, Console())


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0 done, 1 failed, 2 wrong input, 130 and 143 interrupted."""
    command = typer.main.get_command(app)
    termination = Termination()
    try:
        with terminable() as termination:
            # typer turns a KeyboardInterrupt into the exit code that it returns.
            code = command.main(list(arguments), prog_name="elsa-ray", standalone_mode=False)
    except InputError as error:
        return _say(str(error), 2)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            Console().print(error.format_message(), soft_wrap=True, markup=False, highlight=False)
            return 0
        return _say(_one_line(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        return _failed(error)
    if code == 130 and termination.came:
        return _say("terminated", 143)
    return _say("interrupted", 130) if code == 130 else code or 0


def main() -> Any:
    """The entry point ``elsa-ray``: this process is ours, so its heap may be set."""
    keep_freed_memory()
    sys.exit(run_command(sys.argv[1:]))


def _one_line(error: Any) -> str:
    where = error.ctx.command_path if error.ctx else "elsa-ray"
    return f"{' '.join(error.format_message().split())} (see {where} --help)"


def _failed(error: Exception) -> int:
    """Say what failed; a worker's own traceback helps to find out why, ours does not."""
    from elsa_ray.records.mirror import StorageError
    from elsa_ray.runtime.failure import WorkerError

    if isinstance(error, StorageError):
        return _say(str(error), 1)
    if isinstance(error, WorkerError):
        print(error.cause_traceback, file=sys.stderr)  # noqa: T201
        return _say(str(error), 1)
    raise error


def _say(message: str, code: int) -> int:
    Console(stderr=True).print(f"elsa-ray: {message}", soft_wrap=True, markup=False, highlight=False)
    return code
