//! T5's relative position buckets (Raffel et al., 2020, section 2.1), as one short row of bias a head.

use crate::pretrained::T5Config;

/// The bucket of `offset` = key - query.
///
/// Half of the buckets hold exact distances, the rest grow by logarithm up to `maximum_distance`, beyond which all share
/// the last. When `bidirectional`, the upper half of all buckets is for keys after the query; otherwise such keys share
/// bucket 0.
pub fn bucket(offset: i64, bidirectional: bool, buckets: usize, maximum_distance: usize) -> usize {
    let (buckets, first, distance) = match (bidirectional, offset > 0) {
        (true, true) => (buckets / 2, buckets / 2, offset),
        (true, false) => (buckets / 2, 0, -offset),
        (false, _) => (buckets, 0, (-offset).max(0)),
    };
    let distance = distance as usize;
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    // In f32, as the models were trained: a distance on a bucket's edge must fall on the same side.
    let growth = (distance as f32 / exact as f32).ln() / (maximum_distance as f32 / exact as f32).ln();
    let large = exact + (growth * (buckets - exact) as f32) as usize;
    first + large.min(buckets - 1)
}

/// One row a head for key - query from -max_distance to max_distance, from the model's `[buckets, H]` table; and that
/// distance, beyond which the bias is constant.
pub fn bias_rows(config: &T5Config, table: &[f32], bidirectional: bool) -> (Vec<Vec<f32>>, usize) {
    let (buckets, distance) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
    let max_distance = distance.max(1);
    let rows = (0..config.num_heads).map(|head| {
        (-(max_distance as i64)..=max_distance as i64)
            .map(|offset| table[bucket(offset, bidirectional, buckets, distance) * config.num_heads + head])
            .collect()
    });
    (rows.collect(), max_distance)
}
