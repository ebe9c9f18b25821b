# Sourced by the tier scripts: their older flags among "$@" become options of `aime train`, and WANDB_PROJECT its
# W&B project. A flag that can mean nothing any more is told and left out.
left=$#
while [ "$left" -gt 0 ]; do
    word=$1 left=$((left - 1))
    shift
    case $word in
        --batch_size | --batch-size) set -- "$@" --train.batch-size ;;
        --learning_rate | --learning-rate | --lr) set -- "$@" --train.learning-rate ;;
        --num_epochs | --num-epochs) set -- "$@" --epochs ;;
        --latent_dim | --latent-dim) set -- "$@" --model.latent-dim ;;
        --hidden_dim | --hidden-dim) set -- "$@" --model.hidden-dim ;;
        --max_components | --max-components) set -- "$@" --model.max-components ;;
        --video_length | --sequence_length | --sequence-length) set -- "$@" --train.sequence-length ;;
        --use_3d_conv | --temporal_downsample)
            echo "$word has no effect: tokens are made of the trunk's features, frame by frame" >&2
            ;;
        --use_amp) echo "$word has no effect: --train.precision says what is computed in" >&2 ;;
        --gradient_accumulation_steps)
            echo "$word has no effect: a step takes its whole batch; --train.batch-size is its size" >&2
            shift
            left=$((left - 1))
            ;;
        *) set -- "$@" "$word" ;;
    esac
done
[ -z "${WANDB_PROJECT:-}" ] || set -- --train.wandb-project "$WANDB_PROJECT" "$@"
