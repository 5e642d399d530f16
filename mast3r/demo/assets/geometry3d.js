// Small vectors and matrices for the viewer. Axes are OpenCV's: x right, y down, z forward.
"use strict";
window.mast3r = window.mast3r || {};
window.mast3r.math = (() => {
  const add = (a, b) => a.map((value, i) => value + b[i]);
  const subtract = (a, b) => a.map((value, i) => value - b[i]);
  const scale = (a, k) => a.map((value) => value * k);
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const length = (a) => Math.hypot(...a);
  const normalize = (a) => scale(a, 1 / (length(a) || 1));
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const mix = (a, b, share) => a + (b - a) * share;

  // Column-major clip-from-world of a camera with the given axes; focals in units of half the picture.
  function clipFromWorld(eye, right, down, forward, focalX, focalY, near, far) {
    const a = (far + near) / (far - near);
    const b = (-2 * far * near) / (far - near);
    const x = scale(right, focalX);
    const y = scale(down, -focalY);
    const z = scale(forward, a);
    const row = (v) => -dot(v, eye);
    return new Float32Array([
      x[0], y[0], z[0], forward[0],
      x[1], y[1], z[1], forward[1],
      x[2], y[2], z[2], forward[2],
      row(x), row(y), row(z) + b, row(forward),
    ]);
  }

  function project(matrix, p) {
    const out = [0, 1, 2, 3].map((i) => matrix[i] * p[0] + matrix[4 + i] * p[1] + matrix[8 + i] * p[2] + matrix[12 + i]);
    return { x: out[0] / out[3], y: out[1] / out[3], depth: out[3] };
  }

  return { add, subtract, scale, dot, length, normalize, cross, mix, clipFromWorld, project };
})();
