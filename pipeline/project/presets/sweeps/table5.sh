#!/bin/sh
# The paper's table 5, which of the losses a student is trained with, one experiment a column:
#     sh "$(kdm preset path table5)" [STUDENT]    (default: paper)
# queues them; `dvc queue start` runs them, `dvc exp show` compares.
set -eu
student=${1:-paper}
grep -q "^  $student:" params.yaml || { echo "params.yaml has no student '$student'" >&2; exit 1; }

column() { # NAME RECONSTRUCTION LATENT PREDICTION ADVERSARIAL
    losses=students.$student.losses
    dvc exp run --queue --name "table5-$student-$1" \
        -S "++$losses.reconstruction=$2" -S "++$losses.latent=$3" \
        -S "++$losses.prediction=$4" -S "++$losses.adversarial=$5"
}

column lat 0.0 1.0 0.0 0.0
column pred 0.0 0.0 1.0 0.0
column rec 1.0 0.0 0.0 0.0
column lat-pred 0.0 1.0 1.0 0.0
column rec-pred 1.0 0.0 1.0 0.0
column rec-lat 1.0 1.0 0.0 0.0
column koopman 1.0 1.0 1.0 0.0
column all 1.0 1.0 1.0 0.01
