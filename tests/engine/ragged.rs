//! Packing is not seen: not by an example, not by its neighbours, and not by greedy decoding or label scoring. What
//! cannot be packed is refused.

use promptmix::Result;
use promptmix::backend::cpu::{Cpu, Element};
use promptmix::backend::{Batch, Device, Example, MixOps, Objective, OptimizerOps, Scope, Scorer, Side};
use promptmix::model::Pass;
use promptmix::pretrained::Activation;
use promptmix::verify::{Tolerance, compare};

use crate::setting::{Case, Setting, examples, small_config};

fn close(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    let comparison = compare(actual, expected);
    println!("{what}: {:.1e} of the largest", comparison.worst_relative);
    assert!(comparison.passes(Tolerance::OfLargest(tolerance)), "{what}: {comparison:?}");
}

/// f32, two to three layers of sums of up to some forty terms: a few dozen roundings of 6e-8 each. In f64, of 1e-16.
const F32: f64 = 5e-6;
const F64: f64 = 1e-13;

fn alone_equals_packed<E: Element>(tolerance: f64) -> Result<()> {
    for (activation, tied) in [(Activation::Relu, true), (Activation::GatedGelu, false)] {
        let config = small_config(activation, tied, 2, 3);
        // Both ways through cross attention, and a source longer than the position bias reaches.
        for lengths in [&[(17, 1), (1, 1), (40, 2), (6, 1)][..], &[(3, 12), (1, 9), (12, 20)][..]] {
            let setting = Setting::new(config.clone(), examples(1, &config, lengths));
            let case: Case<Cpu<E>> = setting.build(2);
            let state = case.backend.state(&case.mixture.layout, &case.values, 1)?;
            let outputs = |batch: &Batch| -> Result<[Vec<f64>; 3]> {
                let mut pass = Pass::evaluation();
                let encoding = case.model.encode(&case.backend, &case.mixture, &state, batch, &mut pass)?;
                let decoding = case.model.decode(&case.backend, batch, &encoding, &mut pass)?;
                let logits = case.model.logits(&case.backend, batch, &decoding)?;
                Ok([
                    case.backend.attention(encoding.mix())?,
                    case.backend.read(encoding.rows())?,
                    case.backend.read(&logits)?,
                ])
            };
            let together = outputs(&case.batch)?;
            let mut alone = [Vec::new(), Vec::new(), Vec::new()];
            for example in &setting.examples {
                let parts = outputs(&setting.pack(std::slice::from_ref(example)))?;
                alone.iter_mut().zip(parts).for_each(|(all, part)| all.extend(part));
            }
            for (name, (alone, together)) in
                ["attention", "encoder output", "logits"].iter().zip(alone.iter().zip(&together))
            {
                close(&format!("{activation:?} {name}"), together, alone, tolerance);
            }

            let tokens = case.label_tokens();
            let (_, gradient) = case.gradient();
            let mut summed = vec![0.0; gradient.len()];
            for example in &setting.examples {
                let (_, part) = case.gradient_of(&setting.pack(std::slice::from_ref(example)), &tokens);
                summed.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            // Backward sums over all rows of an example and over the examples: ten times forward's rounding.
            close(&format!("{activation:?} gradient"), &gradient, &summed, 10.0 * tolerance);
        }
    }
    Ok(())
}

/// A device may run stretches of examples by themselves: such a part is what packing its examples gives.
#[test]
fn a_part_is_a_batch_of_its_examples() {
    let config = small_config(Activation::Relu, true, 1, 1);
    let mut own = examples(9, &config, &[(7, 1), (3, 4), (12, 2), (1, 1), (5, 3)]);
    for (b, example) in own.iter_mut().enumerate() {
        (example.run, example.target_prompt) = (b as u32 / 2, b as u32 % 2);
    }
    let setting = Setting::new(config, own.clone());
    let whole = setting.pack(&own).pooling_padding(6, 0);
    let weights: Vec<f64> = (0..whole.rows(Side::Decoder)).map(|row| 1.0 + row as f64).collect();
    let whole = whole.weighted(weights.clone()).expect("a weight a row");
    for range in [0..2, 1..4, 4..5, 0..5] {
        let (part, packed) = (whole.part(range.clone()), setting.pack(&own[range.clone()]));
        assert_eq!(part.examples(), range.len());
        assert_eq!((part.labels(), part.decoder_ids()), (packed.labels(), packed.decoder_ids()));
        let first = whole.range(Side::Decoder, range.start).start;
        assert_eq!(part.row_weights(), &weights[first..first + packed.labels().len()]);
        for (b, of) in range.enumerate() {
            for side in [Side::Encoder, Side::Decoder] {
                assert_eq!(part.range(side, b), packed.range(side, b));
            }
            assert_eq!(part.source(b), whole.source(of));
            assert_eq!(part.run(b), whole.run(of));
            assert_eq!(part.target_prompt(b), whole.target_prompt(of));
            assert_eq!(part.example_index(b), whole.example_index(of));
            assert_eq!(part.pooled_padding(b), whole.pooled_padding(of));
        }
    }
    assert_eq!(whole.part(0..5).id(), whole.id(), "all of it is the batch itself");
    assert_ne!(whole.part(0..2).id(), whole.id());
}

/// A step weights its batch and says what is learnt from it: that copies no token.
#[test]
fn other_weights_and_decoder_rows_share_the_batchs_tokens() {
    let config = small_config(Activation::Relu, true, 1, 1);
    let setting = Setting::new(config.clone(), examples(9, &config, &[(7, 1), (3, 4)]));
    let batch = setting.pack(&setting.examples);
    let same = |other: &Batch| {
        std::ptr::eq(batch.source(0), other.source(0)) && std::ptr::eq(batch.source(1), other.source(1))
    };
    let step = batch.clone().weighted(vec![0.5; 5]).expect("a weight a row");
    let step = step.with_objective(Objective { label_smoothing: 0.1, z_loss: 0.0 }).with_capacity(64, 16, 8);
    assert!(same(&step) && same(&batch.part(0..2)));
    assert!(std::ptr::eq(batch.labels(), step.labels()));
    assert!(std::ptr::eq(batch.decoder_ids(), step.decoder_ids()));
    assert_ne!(step.id(), batch.id());
    assert_eq!((batch.row_weights(), step.row_weights()), (&[0.0; 5][..], &[0.5; 5][..]));
    let other = batch.with_decoder(&[vec![1], vec![2]], &[vec![3], vec![4]]).expect("decoder rows");
    assert!(same(&other));
    assert_eq!((other.labels(), batch.labels().len()), (&[3, 4][..], 5));
    let message = "row weights: expected 5, one a decoder row, found 4";
    refused(batch.weighted(vec![1.0; 4]), &[message]);
}

/// The state knows its runs and how many target prompts each has.
#[test]
fn an_example_of_a_run_or_target_prompt_that_the_state_lacks_is_refused() -> Result<()> {
    let config = small_config(Activation::Relu, true, 1, 1);
    for scorer in [None, Some(Scorer::Bottleneck)] {
        let mut setting = Setting::new(config.clone(), examples(9, &config, &[(7, 1), (3, 4)]));
        (setting.targets, setting.mixing.scorer) = (2, scorer);
        let case: Case<Cpu<f32>> = setting.build(1);
        let state = case.backend.state(&case.mixture.layout, &case.values, 1)?;
        for (run, target_prompt, said) in
            [(0, 1, None), (0, 2, Some("target 2 of run 0")), (1, 0, Some("run 1"))]
        {
            let last = &mut setting.examples[1];
            (last.run, last.target_prompt) = (run, target_prompt);
            let batch = setting.pack(&setting.examples);
            let encoding =
                case.model.encode(&case.backend, &case.mixture, &state, &batch, &mut Pass::evaluation());
            match said {
                None => drop(encoding?),
                Some(said) => {
                    let message = encoding.err().expect("refused").to_string();
                    assert!(message.contains("the mixture") && message.contains(said), "{message}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_example_alone_gives_what_it_gives_in_a_batch_in_f32() -> Result<()> {
    alone_equals_packed::<f32>(F32)
}

#[test]
fn an_example_alone_gives_what_it_gives_in_a_batch_in_f64() -> Result<()> {
    alone_equals_packed::<f64>(F64)
}

/// One short target takes the absorbed way. A neighbour with a long target turns the whole batch to the plain way; the
/// counted operations show that it did.
#[test]
fn absorbed_cross_attention_equals_plain() -> Result<()> {
    let config = small_config(Activation::Relu, true, 1, 2);
    let lengths = [(15, 1), (9, 1), (4, 40)];
    let setting = Setting::new(config.clone(), examples(2, &config, &lengths));
    for dropout in [0.0, 0.2] {
        let setting = Setting { dropout: (dropout, 1), ..setting.clone() };
        let case: Case<Cpu<f64>> = setting.build(1);
        let tokens = [10];
        let counted = |examples: &[Example]| {
            let before = case.backend.operations();
            let (_, gradient) = case.gradient_of(&setting.pack(examples), &tokens);
            (case.backend.operations() - before, gradient)
        };
        let (absorbed_operations, mut gradient) = counted(&setting.examples[..2]);
        let (last_operations, last) = counted(&setting.examples[2..]);
        gradient.iter_mut().zip(last).for_each(|(sum, part)| *sum += part);
        let (plain_operations, plain) = counted(&setting.examples);
        assert!(
            plain_operations > absorbed_operations + last_operations,
            "the neighbour changed the way: {plain_operations} against {absorbed_operations} + {last_operations}"
        );
        close(&format!("gradient, dropout {dropout}"), &gradient, &plain, 10.0 * F64);

        let state = case.backend.state(&case.mixture.layout, &case.values, 1)?;
        let logits = |examples: &[Example]| -> Result<Vec<f64>> {
            let (batch, mut pass) = (setting.pack(examples), Pass::evaluation());
            let encoding = case.model.encode(&case.backend, &case.mixture, &state, &batch, &mut pass)?;
            let decoding = case.model.decode(&case.backend, &batch, &encoding, &mut pass)?;
            case.backend.read(&case.model.logits(&case.backend, &batch, &decoding)?)
        };
        let short = logits(&setting.examples[..2])?;
        close("logits", &logits(&setting.examples)?[..short.len()], &short, F64);
    }
    Ok(())
}

/// Greedy decoding through the cache against choosing the largest logit of the whole prefix, recomputed each time.
#[test]
fn the_cache_changes_nothing_that_greedy_decoding_says() -> Result<()> {
    for (activation, tied) in [(Activation::Relu, true), (Activation::GatedGelu, false)] {
        let config = small_config(activation, tied, 2, 3);
        let setting = Setting::new(config.clone(), examples(3, &config, &[(17, 1), (1, 1), (25, 1), (6, 1)]));
        let case: Case<Cpu<f32>> = setting.build(2);
        let state = case.backend.state(&case.mixture.layout, &case.values, 1)?;
        let (batch, longest) = (&case.batch, 14);
        let encoding =
            case.model.encode(&case.backend, &case.mixture, &state, batch, &mut Pass::evaluation())?;
        let said = case.model.greedy(&case.backend, batch, &encoding, longest)?;

        let mut prefixes = vec![vec![config.decoder_start_token_id]; batch.examples()];
        for _ in 0..longest {
            let step = batch.with_decoder(&prefixes, &prefixes).expect("decoder rows");
            let decoding = case.model.decode(&case.backend, &step, &encoding, &mut Pass::evaluation())?;
            let logits = case.backend.read(&case.model.logits(&case.backend, &step, &decoding)?)?;
            for (b, prefix) in prefixes.iter_mut().enumerate() {
                let last = step.range(Side::Decoder, b).end - 1;
                let row = &logits[last * config.vocab_size..(last + 1) * config.vocab_size];
                let best = (0..row.len()).fold(0, |best, id| if row[id] > row[best] { id } else { best });
                prefix.push(best as u32);
            }
        }
        let end = |tokens: &[u32]| tokens.iter().position(|&id| id == config.eos_token_id);
        let expected: Vec<Vec<u32>> = prefixes
            .iter()
            .map(|prefix| prefix[1..end(prefix).map_or(prefix.len(), |end| end + 1)].to_vec())
            .collect();
        println!("{said:?}");
        assert_eq!(said, expected);
        assert!(said.iter().any(|tokens| tokens != &said[0]), "the examples say different things");
    }
    Ok(())
}

#[test]
fn greedy_decoding_stops_after_the_end_of_sequence_and_at_the_longest() -> Result<()> {
    let mut config = small_config(Activation::Relu, true, 1, 1);
    let decode = |config: &promptmix::pretrained::T5Config, longest| -> Result<Vec<Vec<u32>>> {
        let setting = Setting::new(config.clone(), examples(3, config, &[(17, 1), (1, 1), (25, 1)]));
        let case: Case<Cpu<f32>> = setting.build(1);
        let state = case.backend.state(&case.mixture.layout, &case.values, 1)?;
        let encoding =
            case.model.encode(&case.backend, &case.mixture, &state, &case.batch, &mut Pass::evaluation())?;
        case.model.greedy(&case.backend, &case.batch, &encoding, longest)
    };
    assert_eq!(decode(&config, 0)?, vec![Vec::<u32>::new(); 3]);
    let free = decode(&config, 6)?;
    assert!(free.iter().all(|said| said.len() == 6 && !said.contains(&config.eos_token_id)), "{free:?}");
    // Let what the first example says first end a sequence.
    config.eos_token_id = free[0][0];
    for (said, free) in decode(&config, 6)?.iter().zip(&free) {
        let end = free.iter().position(|&id| id == config.eos_token_id).map_or(free.len(), |end| end + 1);
        assert_eq!(said[..], free[..end]);
    }
    Ok(())
}

/// A batch is encoded and answered at once as it is in two calls, and on the CPU no token is decoded after the last end mark.
#[test]
fn an_answer_is_what_greedy_decoding_says_of_the_encoding() -> Result<()> {
    let mut config = small_config(Activation::Relu, true, 1, 1);
    let answer = |config: &promptmix::pretrained::T5Config, count: usize, longest| -> Result<_> {
        let lengths = [(17, 1), (1, 1), (25, 1)];
        let setting = Setting::new(config.clone(), examples(3, config, &lengths[..count]));
        let case: Case<Cpu<f32>> = setting.build(1);
        let Case { backend, model, mixture, batch, values, .. } = &case;
        let state = backend.state(&mixture.layout, values, 1)?;
        let encoding = model.encode(backend, mixture, &state, batch, &mut Pass::evaluation())?;
        let expected = model.greedy(backend, batch, &encoding, longest)?;
        let refused = model.answer(backend, mixture, &state, &mut (), batch, |_, _| Ok(()));
        assert!(refused.expect_err("decoder rows of its own").to_string().contains("a batch to answer"));
        let decoded = batch.decoded(config.decoder_start_token_id, longest)?;
        let (mut encodings, before) = (0, backend.operations());
        let said = model.answer(backend, mixture, &state, &mut (), &decoded, |of, answered| {
            assert_eq!(backend.read(answered.rows())?, backend.read(encoding.rows())?);
            assert_eq!(of.examples(), count);
            encodings += 1;
            Ok(())
        })?;
        assert_eq!((&said, encodings), (&expected, 1));
        Ok((said, backend.operations() - before))
    };
    for longest in [0, 1, 9] {
        let (said, _) = answer(&config, 3, longest)?;
        assert!(said.iter().all(|said| said.len() == longest), "{said:?}");
    }
    // Let what one example says third end a sequence: it takes what three tokens take, or fewer where it said that before.
    let (free, of_nine) = answer(&config, 1, 9)?;
    config.eos_token_id = free[0][2];
    let (said, operations) = answer(&config, 1, 9)?;
    assert!(said[0].len() <= 3 && said[0].last() == Some(&config.eos_token_id), "{said:?}");
    assert_eq!(operations, answer(&config, 1, said[0].len())?.1);
    assert!(operations < of_nine);
    Ok(())
}

/// The likelihood of a candidate is what the loss says of it as a target.
#[test]
fn scoring_equals_the_loss_of_the_candidate_as_target() -> Result<()> {
    let config = small_config(Activation::GatedSilu, true, 2, 2);
    let setting = Setting::new(config.clone(), examples(4, &config, &[(17, 1), (1, 1), (6, 3)]));
    let case: Case<Cpu<f64>> = setting.build(1);
    let state = case.backend.state(&case.mixture.layout, &case.values, 1)?;
    let encoding =
        case.model.encode(&case.backend, &case.mixture, &state, &case.batch, &mut Pass::evaluation())?;
    let candidates = [vec![5, 1], vec![9], vec![7, 7, 30, 1]];
    // Each example has candidates of its own; the second has none.
    let own: [&[Vec<u32>]; 3] = [&candidates, &[], &candidates[1..]];
    let scores = case.model.score(&case.backend, &case.batch, &encoding, &own).expect("scored");
    assert_eq!(scores.iter().map(Vec::len).collect::<Vec<_>>(), [3, 0, 2]);
    for (b, (example, scores)) in setting.examples.iter().zip(&scores).enumerate() {
        for (candidate, score) in own[b].iter().zip(scores) {
            let example = Example { target: candidate.clone(), ..example.clone() };
            let batch = setting.pack(&[example]);
            let pass = Pass::evaluation();
            // Weighted by one over one token: the sum over the candidate's tokens.
            let loss = case.model.loss(&case.backend, &case.mixture, &state, &batch, &[1], pass)?.per_run[0];
            close(&format!("example {b}, {candidate:?}"), &[*score], &[-loss], F64);
        }
    }
    let error = case
        .model
        .score(&case.backend, &case.batch, &encoding, &[&[vec![]], &[], &[]])
        .expect_err("no token");
    assert!(error.to_string().contains("at least one"), "{error}");
    Ok(())
}

fn refused(result: Result<Batch>, expected: &[&str]) {
    let message = result.expect_err("a batch that cannot be").to_string();
    for part in expected {
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    }
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let good = Example { source: vec![3, 1], target: vec![4, 1], ..Example::default() };
    let pack = |examples: &[Example]| Batch::pack(examples, 5, 0, 61);
    assert!(pack(std::slice::from_ref(&good)).is_ok());
    refused(pack(&[]), &["at least one example", "none"]);
    let empty = |source: &[u32], target: &[u32]| Example {
        source: source.to_vec(),
        target: target.to_vec(),
        ..Example::default()
    };
    refused(pack(&[good.clone(), empty(&[], &[1])]), &["source", "0 and 1 in example 1"]);
    refused(pack(&[good.clone(), empty(&[1], &[])]), &["target", "1 and 0 in example 1"]);
    refused(pack(&[good.clone(), empty(&[60, 61], &[1])]), &["below 61", "61 in example 1"]);
    refused(pack(&[empty(&[60], &[1, 61])]), &["below 61", "61 in example 0"]);
    refused(Batch::pack(std::slice::from_ref(&good), 5, 61, 61), &["below 61", "61"]);
    let run = |run| Example { run, ..good.clone() };
    assert!(pack(&[run(0), run(0), run(2)]).is_ok());
    refused(pack(&[run(1), run(0)]), &["ascending", "run 0"]);
}

#[test]
fn other_decoder_rows_must_fit_the_batch() {
    let config = small_config(Activation::Relu, true, 1, 1);
    let batch = Setting::new(config.clone(), examples(5, &config, &[(3, 1), (4, 2)])).build::<f32>(1).batch;
    let rows =
        |lengths: &[usize]| -> Vec<Vec<u32>> { lengths.iter().map(|&length| vec![2; length]).collect() };
    let ragged = batch.with_decoder(&rows(&[1, 3]), &rows(&[1, 3])).expect("decoder rows");
    assert_eq!(ragged.rows(Side::Decoder), 4);
    assert_eq!(ragged.range(Side::Decoder, 1), 1..4);
    assert_eq!(ragged.rows(Side::Encoder), batch.rows(Side::Encoder));
    let expected = &["for each of 2 examples"][..];
    refused(batch.with_decoder(&rows(&[1]), &rows(&[1])), expected);
    refused(batch.with_decoder(&rows(&[1, 1]), &rows(&[1])), expected);
    refused(batch.with_decoder(&rows(&[1, 0]), &rows(&[1, 0])), expected);
    refused(batch.with_decoder(&rows(&[1, 2]), &rows(&[1, 3])), expected);
    refused(batch.with_decoder(&[vec![1], vec![61]], &rows(&[1, 1])), &["below 61", "61"]);
    refused(batch.with_decoder(&rows(&[1, 1]), &[vec![1], vec![70]]), &["below 61", "70"]);
}

/// Offsets by hand for M = 5 and sources of 3 and 4 tokens.
#[test]
fn packed_rows_lie_end_to_end() {
    let config = small_config(Activation::Relu, true, 1, 1);
    let setting = Setting::new(config.clone(), examples(5, &config, &[(3, 1), (4, 2)]));
    let batch = setting.pack(&setting.examples);
    assert_eq!([batch.range(Side::Encoder, 0), batch.range(Side::Encoder, 1)], [0..8, 8..17]);
    assert_eq!(batch.scoped_range(Side::Encoder, Scope::Prompt, 1), 8..13);
    assert_eq!([batch.rows(Side::Encoder), batch.rows(Side::Decoder)], [17, 3]);
    let targets = [&setting.examples[0].target, &setting.examples[1].target];
    assert_eq!(batch.labels(), [targets[0][0], targets[1][0], targets[1][1]]);
    assert_eq!(batch.decoder_ids(), [0, 0, targets[1][0]], "shifted right after the start token");
}
