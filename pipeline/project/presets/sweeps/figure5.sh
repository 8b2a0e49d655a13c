#!/bin/sh
# The paper's figure 5B, numbers of training pairs, one experiment a number:
#     sh "$(kdm preset path figure5)" [STUDENT]    (default: paper)
# queues them; `dvc queue start` runs them, `dvc exp show` compares. (Figure 5A is table 9.)
set -eu
student=${1:-paper}
grep -q "^  $student:" params.yaml || { echo "params.yaml has no student '$student'" >&2; exit 1; }

for pairs in 250000 500000 1000000; do
    dvc exp run --queue --name "figure5-$student-$pairs" -S "++pairs.train=$pairs"
done
