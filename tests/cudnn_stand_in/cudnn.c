/* Stands in for libcudnn: the same functions, with the arguments that NVIDIA's headers declare.
 *
 * It writes down each call, works on float32 in host memory, counts what was created and not destroyed, refuses what
 * it is told to refuse, and notices descriptors of another kind, or that are gone. It computes by definition, so that
 * a wrong order of arguments, layout or convention gives wrong numbers.
 *
 * -DOLD: as cuDNN 8 would be, with other numbers of statuses and without some functions.
 */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef OLD
enum { NOT_INITIALIZED = 1, ALLOC_FAILED = 2, BAD_PARAM = 3, EXECUTION_FAILED = 8, NOT_SUPPORTED = 9 };
#define VERSION 8902
#else
enum {
  NOT_INITIALIZED = 1001,
  BAD_PARAM = 2000,
  NOT_SUPPORTED = 3000,
  ALLOC_FAILED = 4003,
  EXECUTION_FAILED = 5000
};
#ifndef VERSION
#define VERSION 92801
#endif
#endif

typedef struct {
  char kind;
  int number, live;
  int format, type, d[4]; /* tensor: n c h w, filter: k c r s */
  int pad[2], stride[2], dilation[2], groups, math, mode, window[2];
  unsigned size;
  double alpha, beta, k;
} thing;

static char journal[1 << 18], last_error[256], refused_name[128];
static int live, made, refused_status, refused_algo, refused_after;

/* ---- for the tests ---- */
const char* stand_in_journal(void) { return journal; }
int stand_in_live(void) { return live; }
void stand_in_reset(void) {
  journal[0] = last_error[0] = refused_name[0] = 0;
  made = 0;
}
/* The call of that name (with that algorithm, unless it is -1) fails once it was made `after` times. */
void stand_in_refuse(const char* name, int algo, int status, int after) {
  snprintf(refused_name, sizeof refused_name, "%s", name);
  refused_algo = algo, refused_status = status, refused_after = after;
}

static void note(const char* form, ...) {
  size_t used = strlen(journal);
  va_list more;
  va_start(more, form);
  vsnprintf(journal + used, sizeof journal - used, form, more);
  va_end(more);
}
static int fail(int status, const char* why) {
  snprintf(last_error, sizeof last_error, "%s", why);
  return status;
}
static int told(const char* name, int algo) {
  if (strcmp(name, refused_name) || (refused_algo >= 0 && algo != refused_algo)) return 0;
  if (refused_after-- > 0) return 0;
  return fail(refused_status, "told to\n fail");
}
static const char* name_of(thing* t) {
  static char names[16][24];
  static int next;
  char* s = names[next = (next + 1) % 16];
  if (!t) return "null";
  snprintf(s, 24, "%c%d", t->kind, t->number);
  return s;
}
static int is(thing* t, char kind) { return t && t->live && t->kind == kind; }

size_t cudnnGetVersion(void) { return VERSION; }
const char* cudnnGetErrorString(int status) {
  switch (status) {
    case 0:
      return "CUDNN_STATUS_SUCCESS";
    case NOT_INITIALIZED:
      return "CUDNN_STATUS_NOT_INITIALIZED";
    case BAD_PARAM:
      return "CUDNN_STATUS_BAD_PARAM";
    case NOT_SUPPORTED:
      return "CUDNN_STATUS_NOT_SUPPORTED";
    case ALLOC_FAILED:
      return "CUDNN_STATUS_ALLOC_FAILED";
    case EXECUTION_FAILED:
      return "CUDNN_STATUS_EXECUTION_FAILED";
  }
  return "CUDNN_UNKNOWN_STATUS";
}
#ifndef OLD
void cudnnGetLastErrorString(char* message, size_t size) {
  snprintf(message, size, "%s", last_error);
  last_error[0] = 0;
}
#endif

static int create(thing** out, char kind, const char* name) {
  int status = told(name, -1);
  if (status) return status;
  *out = calloc(1, sizeof(thing));
  (*out)->kind = kind, (*out)->live = 1, (*out)->number = made++, (*out)->groups = 1;
  live++;
  note("%s %s\n", name, name_of(*out));
  return 0;
}
static int destroy(thing* t, char kind, const char* name) {
  note("%s %s\n", name, name_of(t));
  if (!is(t, kind)) return fail(BAD_PARAM, "destroyed twice, or of another kind");
  t->live = 0; /* the memory is kept, so that a later use is noticed */
  live--;
  return 0;
}
#define KIND(Name, letter)                                        \
  int cudnnCreate##Name##Descriptor(thing** t) {                  \
    return create(t, letter, "cudnnCreate" #Name "Descriptor");   \
  }                                                               \
  int cudnnDestroy##Name##Descriptor(thing* t) {                  \
    return destroy(t, letter, "cudnnDestroy" #Name "Descriptor"); \
  }
KIND(Tensor, 't')
KIND(Filter, 'f')
KIND(Convolution, 'c')
KIND(Pooling, 'p')
KIND(LRN, 'l')
KIND(Activation, 'a')
int cudnnCreate(thing** h) { return create(h, 'h', "cudnnCreate"); }
int cudnnDestroy(thing* h) { return destroy(h, 'h', "cudnnDestroy"); }
int cudnnSetStream(thing* h, void* stream) {
  note("cudnnSetStream %s %p\n", name_of(h), stream);
  return is(h, 'h') ? told("cudnnSetStream", -1) : BAD_PARAM;
}

#define CALLED(name, ...)       \
  do {                          \
    int told_ = told(name, -1); \
    note(name " " __VA_ARGS__); \
    note("\n");                 \
    if (told_) return told_;    \
  } while (0)
#define MUST(condition) \
  if (!(condition)) return fail(BAD_PARAM, #condition)

int cudnnSetTensor4dDescriptor(thing* t, int format, int type, int n, int c, int h, int w) {
  CALLED("cudnnSetTensor4dDescriptor", "%s %d %d %d %d %d %d", name_of(t), format, type, n, c, h, w);
  MUST(is(t, 't') && n > 0 && c > 0 && h > 0 && w > 0);
  t->format = format, t->type = type, t->d[0] = n, t->d[1] = c, t->d[2] = h, t->d[3] = w;
  return 0;
}
int cudnnSetFilter4dDescriptor(thing* t, int type, int format, int k, int c, int h, int w) {
  CALLED("cudnnSetFilter4dDescriptor", "%s %d %d %d %d %d %d", name_of(t), type, format, k, c, h, w);
  MUST(is(t, 'f') && k > 0 && c > 0 && h > 0 && w > 0);
  t->format = format, t->type = type, t->d[0] = k, t->d[1] = c, t->d[2] = h, t->d[3] = w;
  return 0;
}
int cudnnSetConvolution2dDescriptor(thing* t, int ph, int pw, int u, int v, int dh, int dw, int mode,
                                    int type) {
  CALLED("cudnnSetConvolution2dDescriptor", "%s %d %d %d %d %d %d %d %d", name_of(t), ph, pw, u, v, dh, dw,
         mode, type);
  MUST(is(t, 'c'));
  t->pad[0] = ph, t->pad[1] = pw, t->stride[0] = u, t->stride[1] = v, t->dilation[0] = dh,
  t->dilation[1] = dw;
  t->mode = mode, t->type = type;
  return 0;
}
int cudnnSetConvolutionGroupCount(thing* t, int groups) {
  CALLED("cudnnSetConvolutionGroupCount", "%s %d", name_of(t), groups);
  MUST(is(t, 'c'));
  t->groups = groups;
  return 0;
}
int cudnnSetConvolutionMathType(thing* t, int math) {
  CALLED("cudnnSetConvolutionMathType", "%s %d", name_of(t), math);
  MUST(is(t, 'c') && math >= 0 && math < 4);
  t->math = math;
  return 0;
}
int cudnnSetPooling2dDescriptor(thing* t, int mode, int nan, int r, int s, int ph, int pw, int u, int v) {
  CALLED("cudnnSetPooling2dDescriptor", "%s %d %d %d %d %d %d %d %d", name_of(t), mode, nan, r, s, ph, pw, u,
         v);
  MUST(is(t, 'p'));
  t->mode = mode, t->window[0] = r, t->window[1] = s, t->pad[0] = ph, t->pad[1] = pw, t->stride[0] = u,
  t->stride[1] = v;
  return 0;
}
int cudnnSetLRNDescriptor(thing* t, unsigned size, double alpha, double beta, double k) {
  CALLED("cudnnSetLRNDescriptor", "%s %u %g %g %g", name_of(t), size, alpha, beta, k);
  MUST(is(t, 'l') && size >= 1 && size <= 16 && beta >= 0.01 && k >= 1e-5);
  t->size = size, t->alpha = alpha, t->beta = beta, t->k = k;
  return 0;
}
int cudnnSetActivationDescriptor(thing* t, int mode, int nan, double coefficient) {
  CALLED("cudnnSetActivationDescriptor", "%s %d %d %g", name_of(t), mode, nan, coefficient);
  MUST(is(t, 'a'));
  t->mode = mode;
  return 0;
}

/* ---- arithmetic ---- */
static size_t at(thing* t, int a, int b, int c, int d) {
  int* x = t->d;
  if (t->format == 1) return (((size_t)a * x[2] + c) * x[3] + d) * x[1] + b;
  return (((size_t)a * x[1] + b) * x[2] + c) * x[3] + d;
}
static size_t count(thing* t) { return (size_t)t->d[0] * t->d[1] * t->d[2] * t->d[3]; }
static int equal(thing* a, thing* b) { return !memcmp(a->d, b->d, sizeof a->d) && a->format == b->format; }

/* Direction 0: y from x and w; 1: dx from w and dy; 2: dw from x and dy. */
static void convolve(int way, thing* conv, thing* xd, float* x, thing* wd, float* w, thing* yd, float* y) {
  thing* result = way == 0 ? yd : way == 1 ? xd : wd;
  float* out = way == 0 ? y : way == 1 ? x : w;
  memset(out, 0, count(result) * sizeof(float));
  int kg = wd->d[0] / conv->groups, cg = wd->d[1];
  for (int n = 0; n < yd->d[0]; n++)
    for (int k = 0; k < yd->d[1]; k++)
      for (int p = 0; p < yd->d[2]; p++)
        for (int q = 0; q < yd->d[3]; q++)
          for (int c = 0; c < cg; c++)
            for (int r = 0; r < wd->d[2]; r++)
              for (int s = 0; s < wd->d[3]; s++) {
                int h = p * conv->stride[0] - conv->pad[0] + r * conv->dilation[0];
                int v = q * conv->stride[1] - conv->pad[1] + s * conv->dilation[1];
                if (h < 0 || v < 0 || h >= xd->d[2] || v >= xd->d[3]) continue;
                float *px = x + at(xd, n, k / kg * cg + c, h, v), *pw = w + at(wd, k, c, r, s),
                      *py = y + at(yd, n, k, p, q);
                if (way == 0) *py += *px * *pw;
                if (way == 1) *px += *py * *pw;
                if (way == 2) *pw += *px * *py;
              }
}

typedef struct {
  int algo, status;
  float time;
  size_t memory;
  int determinism, math, reserved[3];
} perf;
/* A ranking: the algorithms backwards; the second entry says that it would fail. */
static int ranking(const char* name, thing* conv, int algorithms, int most, int* found, perf* out) {
  note("%s math %d most %d\n", name, conv->math, most);
  int status = told(name, -1);
  if (status) return status;
  *found = 0;
  for (int algo = algorithms - 1; algo >= 0 && *found < most; algo--)
    out[(*found)++] =
        (perf){algo, algo == algorithms - 2 ? NOT_SUPPORTED : 0, 1.0f, 64, 1, conv->math, {0, 0, 0}};
  return 0;
}
#define ALIGNED(p) (((uintptr_t)(p)) % sizeof(float) == 0 && (p))

#define CONVOLUTION(Name, way, algorithms, ka, kb, kc, X, Y, Z)                                              \
  int cudnnGetConvolution##Name##WorkspaceSize(thing* h, thing* a, thing* b, thing* conv, thing* c,          \
                                               int algo, size_t* size) {                                     \
    note("cudnnGetConvolution" #Name "WorkspaceSize %s %s %s %s %s %d\n", name_of(h), name_of(a),            \
         name_of(b), name_of(conv), name_of(c), algo);                                                       \
    MUST(is(h, 'h') && is(a, ka) && is(b, kb) && is(conv, 'c') && is(c, kc));                                \
    int status = told("cudnnGetConvolution" #Name "WorkspaceSize", algo);                                    \
    *size = 1000 * algo;                                                                                     \
    return status;                                                                                           \
  }                                                                                                          \
  int cudnnGetConvolution##Name##Algorithm_v7(thing* h, thing* a, thing* b, thing* conv, thing* c, int most, \
                                              int* found, perf* out) {                                       \
    MUST(is(h, 'h') && is(a, ka) && is(b, kb) && is(conv, 'c') && is(c, kc));                                \
    return ranking("cudnnGetConvolution" #Name "Algorithm_v7", conv, algorithms, most, found, out);          \
  }                                                                                                          \
  int cudnnConvolution##Name(thing* h, const float* alpha, thing* a, float* pa, thing* b, float* pb,         \
                             thing* conv, int algo, void* workspace, size_t size, const float* beta,         \
                             thing* c, float* pc) {                                                          \
    note("cudnnConvolution" #Name " %s alpha %g %s %s %s algo %d workspace %d size %zu beta %g %s\n",        \
         name_of(h), *alpha, name_of(a), name_of(b), name_of(conv), algo, workspace != 0, size, *beta,       \
         name_of(c));                                                                                        \
    MUST(is(h, 'h') && is(a, ka) && is(b, kb) && is(conv, 'c') && is(c, kc));                                \
    MUST(size == (size_t)1000 * algo && (!size || workspace) && *alpha == 1 && *beta == 0 &&                 \
         conv->mode == 1);                                                                                   \
    MUST(ALIGNED(pa) && ALIGNED(pb) && ALIGNED(pc));                                                         \
    int status = told("cudnnConvolution" #Name, algo);                                                       \
    if (status) return status;                                                                               \
    if (conv->type == 0 && a->type == 0) convolve(way, conv, X, Y, Z);                                       \
    return 0;                                                                                                \
  }
#define TWO(d, p) d, p
CONVOLUTION(Forward, 0, 8, 't', 'f', 't', TWO(a, pa), TWO(b, pb), TWO(c, pc))
CONVOLUTION(BackwardData, 1, 6, 'f', 't', 't', TWO(c, pc), TWO(a, pa), TWO(b, pb))
CONVOLUTION(BackwardFilter, 2, 7, 't', 't', 'f', TWO(a, pa), TWO(c, pc), TWO(b, pb))

int cudnnConvolutionBackwardBias(thing* h, const float* alpha, thing* d, float* dy, const float* beta,
                                 thing* b, float* db) {
  CALLED("cudnnConvolutionBackwardBias", "%s %s %s", name_of(h), name_of(d), name_of(b));
  MUST(is(h, 'h') && is(d, 't') && is(b, 't') && *alpha == 1 && *beta == 0 && b->d[1] == d->d[1]);
  for (int k = 0; k < d->d[1]; k++) {
    double sum = 0;
    for (int n = 0; n < d->d[0]; n++)
      for (int p = 0; p < d->d[2]; p++)
        for (int q = 0; q < d->d[3]; q++) sum += dy[at(d, n, k, p, q)];
    db[k] = sum;
  }
  return 0;
}
int cudnnAddTensor(thing* h, const float* alpha, thing* a, float* pa, const float* beta, thing* c,
                   float* pc) {
  CALLED("cudnnAddTensor", "%s alpha %g %s beta %g %s", name_of(h), *alpha, name_of(a), *beta, name_of(c));
  MUST(is(h, 'h') && is(a, 't') && is(c, 't') && a->d[1] == c->d[1] && count(a) == (size_t)a->d[1]);
  for (int n = 0; n < c->d[0]; n++)
    for (int k = 0; k < c->d[1]; k++)
      for (int p = 0; p < c->d[2]; p++)
        for (int q = 0; q < c->d[3]; q++) {
          float* y = pc + at(c, n, k, p, q);
          *y = *alpha * pa[k] + *beta * *y;
        }
  return 0;
}
static void relu(float* y, const float* x, size_t size) {
  for (size_t i = 0; i < size; i++) y[i] = x[i] > 0 ? x[i] : 0;
}
int cudnnConvolutionBiasActivationForward(thing* h, const float* alpha, thing* xd, float* x, thing* wd,
                                          float* w, thing* conv, int algo, void* workspace, size_t size,
                                          const float* alpha2, thing* zd, float* z, thing* bd, float* b,
                                          thing* act, thing* yd, float* y) {
  const float one = 1;
  CALLED("cudnnConvolutionBiasActivationForward", "%s %s %s %s algo %d size %zu alpha2 %g %s %s %s %s",
         name_of(h), name_of(xd), name_of(wd), name_of(conv), algo, size, *alpha2, name_of(zd), name_of(bd),
         name_of(act), name_of(yd));
  MUST(is(h, 'h') && is(zd, 't') && is(bd, 't') && is(act, 'a') && is(yd, 't') && z && *alpha == 1 &&
       *alpha2 == 0);
  MUST(act->mode == 1 && size == (size_t)1000 * algo && (!size || workspace));
  convolve(0, conv, xd, x, wd, w, yd, y);
  int status = cudnnAddTensor(h, &one, bd, b, &one, yd, y);
  if (!status) relu(y, y, count(yd));
  return status;
}
int cudnnActivationForward(thing* h, thing* act, const float* alpha, thing* xd, float* x, const float* beta,
                           thing* yd, float* y) {
  CALLED("cudnnActivationForward", "%s %s alpha %g %s beta %g %s", name_of(h), name_of(act), *alpha,
         name_of(xd), *beta, name_of(yd));
  MUST(is(h, 'h') && is(act, 'a') && is(xd, 't') && is(yd, 't') && equal(xd, yd) && act->mode == 1 &&
       *beta == 0);
  relu(y, x, count(xd));
  return 0;
}
int cudnnActivationBackward(thing* h, thing* act, const float* alpha, thing* yd, float* y, thing* dyd,
                            float* dy, thing* xd, float* x, const float* beta, thing* dxd, float* dx) {
  CALLED("cudnnActivationBackward", "%s %s alpha %g %s %s %s beta %g %s", name_of(h), name_of(act), *alpha,
         name_of(yd), name_of(dyd), name_of(xd), *beta, name_of(dxd));
  MUST(is(h, 'h') && is(act, 'a') && is(yd, 't') && is(dyd, 't') && is(xd, 't') && is(dxd, 't') && y &&
       act->mode == 1);
  for (size_t i = 0; i < count(xd); i++) dx[i] = x[i] > 0 ? dy[i] : 0;
  return 0;
}

/* What a pool's window may see; -1 where it sees padding. */
static long pixel(thing* pool, thing* x, int n, int c, int p, int q, int r, int s) {
  int h = p * pool->stride[0] - pool->pad[0] + r, w = q * pool->stride[1] - pool->pad[1] + s;
  return h < 0 || w < 0 || h >= x->d[2] || w >= x->d[3] ? -1 : (long)at(x, n, c, h, w);
}
static long maximum(thing* pool, thing* xd, const float* x, int n, int c, int p, int q) {
  long best = -1;
  for (int r = 0; r < pool->window[0]; r++)
    for (int s = 0; s < pool->window[1]; s++) {
      long i = pixel(pool, xd, n, c, p, q, r, s);
      if (i >= 0 && (best < 0 || x[i] > x[best])) best = i;
    }
  return best;
}
static int pooled(thing* pool, thing* x, thing* y) { /* cuDNN's own output size, rounded down */
  for (int i = 0; i < 2; i++)
    if (y->d[2 + i] != 1 + (x->d[2 + i] + 2 * pool->pad[i] - pool->window[i]) / pool->stride[i]) return 0;
  return x->d[0] == y->d[0] && x->d[1] == y->d[1];
}
int cudnnPoolingForward(thing* h, thing* pool, const float* alpha, thing* xd, float* x, const float* beta,
                        thing* yd, float* y) {
  CALLED("cudnnPoolingForward", "%s %s alpha %g %s beta %g %s", name_of(h), name_of(pool), *alpha,
         name_of(xd), *beta, name_of(yd));
  MUST(is(h, 'h') && is(pool, 'p') && is(xd, 't') && is(yd, 't') && pooled(pool, xd, yd));
  for (int n = 0; n < yd->d[0]; n++)
    for (int c = 0; c < yd->d[1]; c++)
      for (int p = 0; p < yd->d[2]; p++)
        for (int q = 0; q < yd->d[3]; q++) y[at(yd, n, c, p, q)] = x[maximum(pool, xd, x, n, c, p, q)];
  return 0;
}
int cudnnPoolingBackward(thing* h, thing* pool, const float* alpha, thing* yd, float* y, thing* dyd,
                         float* dy, thing* xd, float* x, const float* beta, thing* dxd, float* dx) {
  CALLED("cudnnPoolingBackward", "%s %s alpha %g %s %s %s beta %g %s", name_of(h), name_of(pool), *alpha,
         name_of(yd), name_of(dyd), name_of(xd), *beta, name_of(dxd));
  MUST(is(h, 'h') && is(pool, 'p') && is(yd, 't') && is(dyd, 't') && is(xd, 't') && is(dxd, 't') &&
       pooled(pool, xd, yd));
  memset(dx, 0, count(dxd) * sizeof(float));
  for (int n = 0; n < yd->d[0]; n++)
    for (int c = 0; c < yd->d[1]; c++)
      for (int p = 0; p < yd->d[2]; p++)
        for (int q = 0; q < yd->d[3]; q++) {
          long best = maximum(pool, xd, x, n, c, p, q);
          if (y[at(yd, n, c, p, q)] != x[best]) return fail(BAD_PARAM, "y is not the pool of x");
          dx[best] += dy[at(dyd, n, c, p, q)];
        }
  return 0;
}

static double scale(thing* l, thing* t, const float* x, int n, int c, int h, int w) {
  int behind = (l->size - 1) / 2, ahead = l->size - behind - 1;
  double sum = 0;
  for (int i = c - behind; i <= c + ahead; i++)
    if (i >= 0 && i < t->d[1]) sum += (double)x[at(t, n, i, h, w)] * x[at(t, n, i, h, w)];
  return l->k + l->alpha / l->size * sum;
}
int cudnnLRNCrossChannelForward(thing* h, thing* l, int mode, const float* alpha, thing* xd, float* x,
                                const float* beta, thing* yd, float* y) {
  CALLED("cudnnLRNCrossChannelForward", "%s %s %d alpha %g %s beta %g %s", name_of(h), name_of(l), mode,
         *alpha, name_of(xd), *beta, name_of(yd));
  MUST(is(h, 'h') && is(l, 'l') && is(xd, 't') && is(yd, 't') && mode == 0 && equal(xd, yd));
  for (int n = 0; n < xd->d[0]; n++)
    for (int c = 0; c < xd->d[1]; c++)
      for (int i = 0; i < xd->d[2]; i++)
        for (int j = 0; j < xd->d[3]; j++)
          y[at(xd, n, c, i, j)] = x[at(xd, n, c, i, j)] * pow(scale(l, xd, x, n, c, i, j), -l->beta);
  return 0;
}
#ifndef OLD
int cudnnLRNCrossChannelBackward(thing* h, thing* l, int mode, const float* alpha, thing* yd, float* y,
                                 thing* dyd, float* dy, thing* xd, float* x, const float* beta, thing* dxd,
                                 float* dx) {
  CALLED("cudnnLRNCrossChannelBackward", "%s %s %d alpha %g %s %s %s beta %g %s", name_of(h), name_of(l),
         mode, *alpha, name_of(yd), name_of(dyd), name_of(xd), *beta, name_of(dxd));
  MUST(is(h, 'h') && is(l, 'l') && is(yd, 't') && is(dyd, 't') && is(xd, 't') && is(dxd, 't') && mode == 0);
  int behind = (l->size - 1) / 2, ahead = l->size - behind - 1;
  for (int n = 0; n < xd->d[0]; n++)
    for (int c = 0; c < xd->d[1]; c++)
      for (int i = 0; i < xd->d[2]; i++)
        for (int j = 0; j < xd->d[3]; j++) {
          double sum = 0; /* over the outputs whose window has this channel */
          for (int o = c - ahead; o <= c + behind; o++) {
            if (o < 0 || o >= xd->d[1]) continue;
            sum += (double)dy[at(xd, n, o, i, j)] * y[at(xd, n, o, i, j)] / scale(l, xd, x, n, o, i, j);
          }
          double s = scale(l, xd, x, n, c, i, j);
          dx[at(xd, n, c, i, j)] = dy[at(xd, n, c, i, j)] * pow(s, -l->beta) -
                                   2 * l->alpha / l->size * l->beta * x[at(xd, n, c, i, j)] * sum;
        }
  return 0;
}
#endif

int cudnnSoftmaxForward(thing* h, int algo, int mode, const float* alpha, thing* xd, float* x,
                        const float* beta, thing* yd, float* y) {
  CALLED("cudnnSoftmaxForward", "%s %d %d alpha %g %s beta %g %s", name_of(h), algo, mode, *alpha,
         name_of(xd), *beta, name_of(yd));
  MUST(is(h, 'h') && is(xd, 't') && is(yd, 't'));
  for (int n = 0; n < xd->d[0]; n++) {
    size_t row = count(xd) / xd->d[0];
    double sum = 0;
    for (size_t i = 0; i < row; i++) sum += exp(x[n * row + i]);
    for (size_t i = 0; i < row; i++) y[n * row + i] = exp(x[n * row + i]) / sum;
  }
  return 0;
}
int cudnnSoftmaxBackward(thing* h, int algo, int mode, const float* alpha, thing* yd, float* y, thing* dyd,
                         float* dy, const float* beta, thing* dxd, float* dx) {
  CALLED("cudnnSoftmaxBackward", "%s %d %d alpha %g %s %s beta %g %s", name_of(h), algo, mode, *alpha,
         name_of(yd), name_of(dyd), *beta, name_of(dxd));
  MUST(is(h, 'h') && is(yd, 't') && is(dyd, 't') && is(dxd, 't'));
  for (int n = 0; n < yd->d[0]; n++) {
    size_t row = count(yd) / yd->d[0];
    double sum = 0;
    for (size_t i = 0; i < row; i++) sum += (double)dy[n * row + i] * y[n * row + i];
    for (size_t i = 0; i < row; i++) dx[n * row + i] = y[n * row + i] * (dy[n * row + i] - sum);
  }
  return 0;
}
