"""A project folder with a click model and a retriever on the world "small", tiny enough to train in a fraction of a
second: the runs that the tests of commands, of runs and of killed runs are about.
"""

from pathlib import Path

SCHEMA = Path(__file__).resolve().parents[2] / "configs" / "schemas" / "demo.toml"

CTR = """
seed = 1

[data]
name = "ctr"
source = "world"
path = "small"
schema = "demo.toml"
examples = "all"
split = { kind = "time", validation = 0.1, test = 0.1 }

[model]
name = "dcn"
cross_layers = 1
hidden = [4]

[tables]
backend = "fused"

[tables.ids]
method = "unified"
num_embeddings = 300
chunk_dim = 4
chunks = 2

[optimizer.tables]
name = "rowwise_adagrad"
lr = 0.05

[training]
batch_size = 4000
max_epochs = 2
metric = "auc"
patience = 1
checkpoint_every_s = 0
threads = 1
"""

RETRIEVER = """
seed = 1

[data]
name = "clicks"
source = "world"
path = "small"
schema = "demo.toml"
examples = "positive"
split = { kind = "time", validation = 0.1, test = 0.1 }

[model]
name = "twotower"
features = ["user", "history", "item", "category"]

[tables]
backend = "plain"

[tables.ids]
method = "dense"
embedding_dim = 4

[optimizer.tables]
name = "adam"
lr = 0.01

[training]
batch_size = 800
max_epochs = 2
checkpoint_every_s = 0
refit = true
threads = 1
"""

POPULARITY = RETRIEVER.partition("[model]")[0] + '[model]\nname = "popularity"\n'


def write_project(folder: Path) -> Path:
    """Write ctr.toml, retriever.toml, popularity.toml and their schema into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.toml").write_text(SCHEMA.read_text())
    for name, text in (("ctr", CTR), ("retriever", RETRIEVER), ("popularity", POPULARITY)):
        (folder / f"{name}.toml").write_text(text)
    return folder
