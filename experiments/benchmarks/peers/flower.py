"""The same work in Flower's simulation engine: Ray backend, one CPU a client app, so that all CPUs work."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor
from work import Clock, Work, run, trainer_of


def flower(work: Work) -> tuple[Clock, Mapping[str, Tensor]]:
    """Run FedAvg over all clients; each is a SuperNode of its own."""
    facts, clock, results = work.facts, Clock(), {}
    folder = str(work.folder)
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        if facts["is_no_op"]:
            arrays = message.content["arrays"]
        else:
            trainer = trainer_of(folder)  # built once in each Ray actor, not once a client
            trainer.set(message.content["arrays"].to_torch_state_dict())
            client = int(context.node_config["partition-id"])
            trainer.train(int(message.content["config"]["server-round"]) - 1, client)
            arrays = ArrayRecord(trainer.get())
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
        return Message(content=RecordDict(content), reply_to=message)

    class Timed(FedAvg):
        """FedAvg that tells the clock when a round is over."""

        def aggregate_train(self, server_round: int, replies):
            """Aggregate, then take the time."""
            answer = super().aggregate_train(server_round, replies)
            clock.round()
            return answer

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        clock.start()

        def fedavg(clients: int) -> Timed:
            fraction = clients / facts["clients"]
            return Timed(fraction, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=facts["clients"])

        first = ArrayRecord(work.first_adapters)
        fedavg(facts["warm_up_clients"]).start(grid, first, 1, train_config=ConfigRecord())
        clock.start()
        result = fedavg(facts["clients"]).start(grid, first, facts["rounds"], train_config=ConfigRecord())
        results.update(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app,
        client_app,
        num_supernodes=facts["clients"],
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return clock, results


if __name__ == "__main__":
    run(flower)
