#!/bin/sh
# The paper's table 6, sizes of the latent and so of the Koopman matrix, one experiment a size:
#     sh "$(kdm preset path table6)" [STUDENT]    (default: paper)
# queues them; `dvc queue start` runs them, `dvc exp show` compares.
set -eu
student=${1:-paper}
grep -q "^  $student:" params.yaml || { echo "params.yaml has no student '$student'" >&2; exit 1; }

for latent in 1024 4096 9216; do
    dvc exp run --queue --name "table6-$student-$latent" \
        -S "++students.$student.model.latent=$latent"
done
