"""The same work in Flower's simulation engine: Ray backend, one CPU a client app, so that all CPUs work."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor
from work import Turns, Work, run, trainer_of


def flower(work: Work, turns: Turns) -> Mapping[str, Tensor]:
    """Run FedAvg over all clients; each is a SuperNode of its own."""
    clients, rounds, is_no_op = work.facts["clients"], work.facts["rounds"], work.facts["is_no_op"]
    folder, after = str(work.folder), {}
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        if not is_no_op:
            trainer = trainer_of(folder)  # built once in each Ray actor, not once a client
            trainer.set(arrays.to_torch_state_dict())
            client = int(context.node_config["partition-id"])
            trainer.train(int(message.content["config"]["server-round"]) - 1, client)
            arrays = ArrayRecord(trainer.get())
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
        return Message(content=RecordDict(content), reply_to=message)

    class InTurn(FedAvg):
        """FedAvg that waits for its turn between rounds."""

        def aggregate_train(self, server_round, replies):
            """Aggregate the answers of all clients."""
            replies = list(replies)
            failed = [reply for reply in replies if reply.has_error()]
            assert len(replies) == clients and not failed, f"{len(replies)} answers, errors: {failed[:1]}"
            answer = super().aggregate_train(server_round, replies)
            turns.end_round()
            return answer

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = InTurn(1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        turns.wait()
        result = strategy.start(grid, ArrayRecord(work.first_adapters), rounds, train_config=ConfigRecord())
        after.update(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app,
        client_app,
        num_supernodes=clients,
        # A Ray of its own, also where another one is running or has left its address.
        backend_config={
            "init_args": {"address": "local", "num_cpus": 2},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return after


if __name__ == "__main__":
    run(flower)
