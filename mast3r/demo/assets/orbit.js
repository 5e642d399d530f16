// A camera that circles a target: hand, wheel, fingers and keys move it.
"use strict";
window.mast3r.Orbit = class Orbit {
  // frame: {forward, down} of the first camera; down decides what stays upright.
  constructor(frame) {
    const { math } = window.mast3r;
    this.down = math.normalize(frame.down);
    const level = math.subtract(frame.forward, math.scale(this.down, math.dot(frame.forward, this.down)));
    this.level = math.normalize(math.length(level) > 1e-3 ? level : [this.down[1], this.down[2], this.down[0]]);
    this.side = math.cross(this.down, this.level);
    this.state = { x: 0, y: 0, z: 0, distance: 1, yaw: 0, pitch: 0, roll: 0, focal: 1 };
    this.flight = null;
  }

  axes(state = this.state) {
    const { add, scale, cross } = window.mast3r.math;
    const { yaw, pitch, roll } = state;
    const level = add(scale(this.level, Math.cos(yaw)), scale(this.side, Math.sin(yaw)));
    const flat = add(scale(this.side, Math.cos(yaw)), scale(this.level, -Math.sin(yaw)));
    const forward = add(scale(level, Math.cos(pitch)), scale(this.down, Math.sin(pitch)));
    const upright = cross(forward, flat);
    const right = add(scale(flat, Math.cos(roll)), scale(upright, Math.sin(roll)));
    return { right, down: cross(forward, right), forward };
  }

  eye() {
    const { add, scale } = window.mast3r.math;
    return add([this.state.x, this.state.y, this.state.z], scale(this.axes().forward, -this.state.distance));
  }

  // The state that looks as a camera does, from `back` behind it, at a target `depth` before it.
  stateOf(view, depth, back) {
    const { dot, add, scale } = window.mast3r.math;
    const forward = view.forward;
    const state = {
      distance: depth + back,
      yaw: Math.atan2(dot(forward, this.side), dot(forward, this.level)),
      pitch: Math.asin(Math.max(-1, Math.min(1, dot(forward, this.down)))),
      roll: 0,
      focal: view.focal,
    };
    const plain = this.axes(state);
    state.roll = Math.atan2(dot(view.right, plain.down), dot(view.right, plain.right));
    const [x, y, z] = add(view.center, scale(forward, depth));
    return { ...state, x, y, z };
  }

  turn(dx, dy) {
    this.flight = null;
    this.state.yaw += dx;
    this.state.pitch = Math.max(-1.56, Math.min(1.56, this.state.pitch + dy));
    this.state.roll *= 0.9;
  }

  // Shares of the picture's height.
  pan(dx, dy) {
    const { right, down } = this.axes();
    const k = (2 * this.state.distance) / this.state.focal;
    this.flight = null;
    ["x", "y", "z"].forEach((name, i) => {
      this.state[name] -= k * (dx * right[i] + dy * down[i]);
    });
  }

  zoom(factor) {
    this.flight = null;
    this.state.distance = Math.max(1e-4, this.state.distance * factor);
  }

  flyTo(state, seconds) {
    const turn = (state.yaw - this.state.yaw) / (2 * Math.PI);
    const end = { ...state, yaw: state.yaw - 2 * Math.PI * Math.round(turn) };
    this.flight = { start: { ...this.state }, end, begin: performance.now(), seconds: Math.max(seconds, 1e-3) };
  }

  // Moves along a flight; true while there is one.
  advance(now) {
    if (!this.flight) return false;
    const { start, end, begin, seconds } = this.flight;
    const share = Math.min(1, Math.max(0, (now - begin) / 1000 / seconds));
    const smooth = share * share * (3 - 2 * share);
    Object.keys(end).forEach((name) => {
      this.state[name] = window.mast3r.math.mix(start[name], end[name], smooth);
    });
    if (share === 1) this.flight = null;
    return true;
  }
};
