//! Kernels launched alone, on cudarc's own buffers.

use half::bf16;
use promptmix::backend::Heads;
use promptmix::cuda::attention::SelfAttention;
use promptmix::cuda::{Precision, Sequences};

use crate::device::{device, numbers};

#[test]
fn attention_on_buffers_of_ones_own() {
    attention_over([1, 65, 30]);
    // Few enough rows for a warp to hold.
    attention_over([1, 16, 15]);
}

fn attention_over(lengths: [usize; 3]) {
    let Some(device) = device(Precision::Bf16) else { return };
    let kernels = device.cuda.kernels();
    let stream = kernels.stream();
    let heads = Heads { count: 2, width: 16 };
    let sequences = Sequences::new(stream, &lengths).expect("three sequences");
    let (rows, total) = (sequences.rows(), heads.total());
    assert_eq!(rows, lengths.iter().sum::<usize>());
    let up = |values: &[f64]| {
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f64(value)).collect();
        stream.clone_htod(&values).expect("an upload")
    };
    let values = numbers(1, rows * 3 * total, 0.5);
    let (qkv, d_o) = (up(&values), up(&numbers(2, rows * total, 1.0)));
    let poison = |count: usize| up(&vec![f64::NAN; count]);
    let floats = || stream.clone_htod(&vec![f32::NAN; rows * heads.count]).expect("an upload");
    let (mut o, mut log_sum_exp, mut delta) = (poison(rows * total), floats(), floats());
    let mut d_qkv = poison(rows * 3 * total);
    let attention = SelfAttention { sequences: &sequences, heads, causal: true, bias: None };
    attention
        .forward(kernels, &qkv.as_view(), &mut o.as_view_mut(), &mut log_sum_exp.as_view_mut())
        .expect("forward");
    let (o_view, sums) = (o.as_view(), log_sum_exp.as_view());
    attention
        .backward(
            kernels,
            &qkv.as_view(),
            &o_view,
            &sums,
            &d_o.as_view(),
            &mut delta.as_view_mut(),
            &mut d_qkv.as_view_mut(),
        )
        .expect("backward");
    let said = stream.clone_dtoh(&o).expect("o");
    let gradient = stream.clone_dtoh(&d_qkv).expect("d_qkv");
    device.cuda.synchronize().expect("a healthy device");

    // A row that sees only itself repeats its own v: the first of every sequence.
    let mut first = 0;
    for length in lengths {
        for column in 0..total {
            let v = values[first * 3 * total + 2 * total + column];
            assert!((said[first * total + column].to_f64() - v).abs() <= v.abs() / 256.0, "row {first}");
        }
        first += length;
    }
    assert!(
        gradient.iter().all(|value| value.is_finite()) && gradient.iter().any(|value| value.to_f32() != 0.0)
    );

    let longer = poison(rows * 3 * total + 8);
    let askew = longer.slice(1..=rows * 3 * total);
    let refused = attention.forward(kernels, &askew, &mut o.as_view_mut(), &mut log_sum_exp.as_view_mut());
    let said = refused.expect_err("rows that begin on no 16 bytes").to_string();
    assert!(said.contains("qkv: expected an address that is a multiple of 16 bytes"), "{said}");

    let wrong = Sequences::new(stream, &[rows - 1]).expect("a sequence");
    let attention = SelfAttention { sequences: &wrong, ..attention };
    let refused =
        attention.forward(kernels, &qkv.as_view(), &mut o.as_view_mut(), &mut log_sum_exp.as_view_mut());
    assert!(
        refused
            .expect_err("another length")
            .to_string()
            .contains(&format!("o: expected {}", (rows - 1) * total)),
        "names the operand"
    );
    assert!(Sequences::new(stream, &[3, 0]).is_err());
}
