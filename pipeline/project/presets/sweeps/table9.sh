#!/bin/sh
# The paper's table 9, sizes of a U-Net student for CIFAR-10, one experiment a size:
#     sh "$(kdm preset path table9)" [STUDENT]    (default: paper)
# queues them; `dvc queue start` runs them, `dvc exp show` compares.
#
# The paper gives no widths. Its 62 million parameters of table 4 are the 47.5 that are trained and
# the 14.7 of LPIPS's VGG16; counted like that, these are 20, 38 and 84 million.
set -eu
student=${1:-paper}
grep -q "^  $student:" params.yaml || { echo "params.yaml has no student '$student'" >&2; exit 1; }

size() { # NAME CHANNELS MULTIPLIERS
    model=students.$student.model
    dvc exp run --queue --name "table9-$student-$1" \
        -S "++$model.encoder.channels=$2" -S "++$model.encoder.multipliers=$3" \
        -S "++$model.decoder.channels=$2" -S "++$model.decoder.multipliers=$3"
}

size 20M 32 "[1,1,1,1]"
size 38M 32 "[1,2,2,4]"
size 84M 64 "[1,1,3,3]"
