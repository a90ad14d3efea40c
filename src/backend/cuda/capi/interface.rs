//! The structs of `kernels/capi.h`, as C lays them out.

/// `promptmix_attention`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Attention {
    /// A `promptmix_sequences`.
    pub sequences: *mut std::ffi::c_void,
    /// \[query rows, heads · width\].
    pub q: u64,
    /// \[key rows, heads · width\].
    pub k: u64,
    /// As k.
    pub v: u64,
    /// \[heads, 2·max_distance + 1\] in f32, or 0.
    pub bias: u64,
    /// \[query rows, heads · width\].
    pub o: u64,
    /// \[query rows, heads\] in f32.
    pub log_sum_exp: u64,
    /// Numbers from row to row of q and d_q.
    pub q_stride: i64,
    /// Of k, v, d_k and d_v.
    pub kv_stride: i64,
    /// H.
    pub heads: i32,
    /// K.
    pub width: i32,
    /// Of the bias.
    pub max_distance: i32,
    /// 0 or 1.
    pub causal: i32,
    /// 0 for bf16, 1 for f32.
    pub precision: i32,
    /// Above zero.
    pub softmax_scale: f32,
}

/// `promptmix_attention_gradient`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AttentionGradient {
    /// \[query rows, heads · width\].
    pub d_o: u64,
    /// \[query rows, heads\] in f32.
    pub delta: u64,
    /// As q.
    pub d_q: u64,
    /// As k.
    pub d_k: u64,
    /// As v.
    pub d_v: u64,
}

/// `promptmix_adamw_settings`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AdamWSettings {
    /// The rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Infinity for no clip.
    pub max_grad_norm: f64,
}

/// `promptmix_adamw_report`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AdamWReport {
    /// Before the clip.
    pub gradient_norm: f64,
    /// 0 or 1.
    pub applied: i32,
    /// 0.
    pub padding: i32,
}
