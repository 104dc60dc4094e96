/* One loop for every token: what chooses experts, and weighs their neurons, in one call.
 *
 *     a[m, n·f + i] *= rest + share · g[m, n]
 *
 * with g the softmax over the K best of the logits W h (Eq. 7), or, for K = 1, the best one's share of
 * all. Decoding a token, a dozen small operators take longer than their arithmetic.
 *
 * Legend: M tokens, D d_model, f d_expert, N num_experts (at most 256), K top_k.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, MOST = 256 };

/* Made for several kinds of machine; which one this is, is found out when the library is loaded. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_MACHINE __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define FOR_EACH_MACHINE
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

INLINE float widen(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* To the nearest bfloat16, ties to even; what isn't a number stays none. */
INLINE uint16_t narrow(float value) {
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    if (value != value) return 0x7fc0;
    return (uint16_t)((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

/* <w, h>, in sums that a compiler may put into one vector. */
INLINE float dot(const float *w, const float *h, int64_t size) {
    float sums[LANES] = {0}, total = 0;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += w[i + lane] * h[i + lane];
    for (int lane = 0; lane < LANES; lane++) total += sums[lane];
    for (; i < size; i++) total += w[i] * h[i];
    return total;
}

/* Logits become gates, zero where an expert isn't among the K best. */
INLINE void gate(float *logits, int64_t experts, int64_t top_k) {
    float gates[MOST] = {0}, best = 0, total = 0;
    int taken[MOST] = {0};
    for (int64_t k = 0; k < top_k; k++) {
        int64_t next = -1;
        for (int64_t n = 0; n < experts; n++)
            if (!taken[n] && (next < 0 || logits[n] > logits[next])) next = n;
        if (k == 0) best = logits[next];
        taken[next] = 1;
        gates[next] = expf(logits[next] - best);
    }
    for (int64_t n = 0; n < experts; n++)
        total += top_k == 1 ? expf(logits[n] - best) : gates[n];
    for (int64_t n = 0; n < experts; n++) logits[n] = gates[n] / total;
}

/* a and hidden are bfloat16 if `half`, else float32. */
FOR_EACH_MACHINE void weigh_once(void *a, const void *hidden, const float *router, int64_t half, int64_t tokens,
                int64_t d_model, int64_t experts, int64_t d_expert, int64_t top_k, float rest,
                float share) {
    float weights[MOST], wide[half ? d_model : 1];
    for (int64_t m = 0; m < tokens; m++) {
        const float *token = (const float *)hidden + m * d_model;
        if (half) {
            const uint16_t *stored = (const uint16_t *)hidden + m * d_model;
            for (int64_t i = 0; i < d_model; i++) wide[i] = widen(stored[i]);
            token = wide;
        }
        for (int64_t n = 0; n < experts; n++) weights[n] = dot(router + n * d_model, token, d_model);
        gate(weights, experts, top_k);
        for (int64_t n = 0; n < experts; n++) {
            float weight = rest + share * weights[n];
            int64_t first = (m * experts + n) * d_expert;
            if (half) {
                uint16_t *neuron = (uint16_t *)a + first;
                weight = widen(narrow(weight));
                for (int64_t i = 0; i < d_expert; i++) neuron[i] = narrow(widen(neuron[i]) * weight);
            } else {
                float *neuron = (float *)a + first;
                for (int64_t i = 0; i < d_expert; i++) neuron[i] *= weight;
            }
        }
    }
}
