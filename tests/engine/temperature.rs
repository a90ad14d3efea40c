//! The learnt temperature: it starts at D·e, where the scores are so flat that its gradient is tiny, and still moves.

use std::path::{Path, PathBuf};

use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element};
use promptmix::backend::{Batch, Example, MixOps, Mixing, OptimizerOps, OptimizerStep, Scorer, StateLayout};
use promptmix::model::{Mixture, Pass, T5};
use promptmix::pretrained::Checkpoint;

use crate::random::Random;

const STEPS: usize = 100;
/// The paper's rates, warmed up over 6 % of the steps and then falling to 0.
const PROMPT_RATE: f64 = 0.3;
const SCORER_RATE: f64 = 0.1;

fn rate_share(step: usize) -> f64 {
    let warm_up = STEPS * 6 / 100;
    if step < warm_up {
        step as f64 / warm_up as f64
    } else {
        (STEPS - step) as f64 / (STEPS - warm_up) as f64
    }
}

struct Training<E: Element> {
    cpu: Cpu<E>,
    model: T5<Cpu<E>>,
    mixture: Mixture<Cpu<E>>,
    batch: Batch,
    values: Vec<f64>,
}

/// A two-class task that one word of the source decides, on a stored model; three sources of vocabulary rows.
fn training<E: Element>(folder: &Path) -> Training<E> {
    let cpu = Cpu::<E>::new(Some(2)).expect("threads");
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let model = T5::load(&cpu, &checkpoint).expect("a model");
    let config = model.config().clone();
    let (width, length, bottleneck_dim) = (config.d_model, 10, 16);
    let mut random = Random::new(11);
    let table = model.embedding().values();
    let mut prompt = || -> Vec<f64> {
        let rows = (0..length).flat_map(|_| {
            let row = random.below(config.vocab_size);
            table[row * width..(row + 1) * width].iter().map(|value| value.widen())
        });
        rows.collect()
    };
    let sources: Vec<f32> = (0..3).flat_map(|_| prompt()).map(|value| value as f32).collect();
    let temperature = width as f64 * std::f64::consts::E;
    let mixing = Mixing {
        scorer: Some(Scorer::Bottleneck),
        temperature,
        without_target: false,
        layer_norm_epsilon: 1e-5,
    };
    let layout = StateLayout::new(&mixing, 1, length, width, bottleneck_dim, true);
    let mut values = vec![0.0; layout.len()];
    let target = prompt();
    for segment in layout.segments() {
        let spread = (segment.shape[segment.shape.len() - 1] as f64).powf(-0.5);
        for (place, value) in values[segment.range.clone()].iter_mut().enumerate() {
            *value = match segment.name {
                "target_prompts" => target[place],
                "norm_weight" => 1.0,
                "norm_bias" => 0.0,
                "log_temperature" => temperature.ln(),
                _ => spread * random.normal(),
            };
        }
    }
    let examples: Vec<Example> = (0..8)
        .map(|index| {
            let class = index % 2;
            let mut source: Vec<u32> = (0..12).map(|_| 40 + random.below(400) as u32).collect();
            source[index as usize] = 30 + class;
            source.push(config.eos_token_id);
            Example { source, target: vec![20 + class, config.eos_token_id], index, ..Example::default() }
        })
        .collect();
    let batch =
        Batch::pack(&examples, length, config.decoder_start_token_id, config.vocab_size).expect("a batch");
    let sources = Some(cpu.sources(&sources, 3, length, width).expect("sources"));
    Training { mixture: Mixture { mixing, sources, source_count: 3, layout }, batch, values, cpu, model }
}

fn moves(name: &str, folder: &Path) -> Result<()> {
    // The gradient first, in f64, at the very start.
    let start = training::<f64>(folder);
    let tokens = [start.batch.label_tokens(0)];
    let place = start.mixture.layout.range("log_temperature", 0).expect("learnt").start;
    let loss = |step: f64| -> Result<f64> {
        let mut values = start.values.clone();
        values[place] += step;
        let state = start.cpu.state(&start.mixture.layout, &values, 1)?;
        let pass = Pass::evaluation();
        let loss = start.model.loss(&start.cpu, &start.mixture, &state, &start.batch, &tokens, pass)?;
        Ok(loss.per_run[0])
    };
    // The gradient is near 1e-4, so a wide step: f64 rounding of a loss near 10 is 1e-14 / 1e-2, truncation some 1e-4
    // of the gradient.
    let step = 1e-2;
    let differences = (loss(step)? - loss(-step)?) / (2.0 * step);
    let mut state = start.cpu.state(&start.mixture.layout, &start.values, 1)?;
    start.model.loss_and_gradient(&start.cpu, &start.mixture, &mut state, &start.batch, &tokens, None)?;
    let gradient = start.cpu.read_gradient(&state)?[place];
    println!("{name}: d_log_temperature {gradient:.6e}, central differences {differences:.6e}");
    assert!((gradient - differences).abs() <= 1e-3 * gradient.abs(), "{gradient:e} against {differences:e}");

    // Then training, in f32.
    let Training { cpu, model, mixture, batch, values } = training::<f32>(folder);
    let mut state = cpu.state(&mixture.layout, &values, 1)?;
    let mut losses = Vec::new();
    for step in 0..STEPS {
        cpu.begin_step(&mut state)?;
        let (loss, _) = model.loss_and_gradient(&cpu, &mixture, &mut state, &batch, &tokens, None)?;
        losses.push(loss.per_run[0]);
        let share = rate_share(step);
        let mut optimizer = OptimizerStep::new(PROMPT_RATE * share, SCORER_RATE * share);
        optimizer.max_grad_norm = 1.0;
        cpu.optimizer_step(&mut state, &[optimizer])?;
        assert!(cpu.reports(&mut state)?[0][0].applied, "step {step}");
    }
    let [trained, ..] = cpu.read_state(&state)?;
    let (before, after) = (values[place].exp(), trained[place].exp());
    let change = after / before - 1.0;
    println!(
        "{name}: temperature {before:.2} to {after:.2} ({:+.1} %) in {STEPS} steps; loss {:.3} to {:.3}",
        100.0 * change,
        losses[0],
        losses[STEPS - 1]
    );
    assert!(losses[STEPS - 1] < 0.5 * losses[0], "the run learns: {losses:?}");
    assert!(change.abs() > 0.05, "the temperature moved by {change:e} only");
    Ok(())
}

#[test]
fn moves_by_over_a_twentieth_in_100_steps_on_the_small_fixture() -> Result<()> {
    moves("tiny", &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny"))
}

#[test]
fn moves_by_over_a_twentieth_in_100_steps_on_the_demo_model() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders: [PathBuf; 2] = [root.join("demo"), root.join("../shared/demo")];
    match folders.iter().find(|folder| folder.join("model.safetensors").is_file()) {
        Some(folder) => moves("demo", folder),
        None => {
            println!(
                "skipped: the demo model is neither in demo/ nor in ../shared/demo beside this checkout"
            );
            Ok(())
        }
    }
}
