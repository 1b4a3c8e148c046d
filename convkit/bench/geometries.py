"""Convolutions of other networks, and odd ones: what a convolution library meets besides AlexNet."""

from __future__ import annotations

#: By name, as `--conv` takes them: N,C,H,W,K,R,S.
GEOMETRIES = {
    "vgg-1.1": "4,3,224,224,64,3,3,pad=1",
    "vgg-1.2": "2,64,224,224,64,3,3,pad=1",
    "vgg-2.2": "2,128,112,112,128,3,3,pad=1",
    "vgg-3.2": "4,256,56,56,256,3,3,pad=1",
    "vgg-4.2": "4,512,28,28,512,3,3,pad=1",
    "vgg-5.2": "8,512,14,14,512,3,3,pad=1",
    "resnet-stem": "8,3,224,224,64,7,7,stride=2,pad=3",
    "resnet-64": "8,64,56,56,64,3,3,pad=1",
    "resnet-128": "8,128,28,28,128,3,3,pad=1",
    "resnet-256": "8,256,14,14,256,3,3,pad=1",
    "resnet-512": "16,512,7,7,512,3,3,pad=1",
    "resnet-down": "8,128,56,56,128,3,3,stride=2,pad=1",
    "resnet-1x1-in": "8,256,56,56,64,1,1",
    "resnet-1x1-out": "8,64,56,56,256,1,1",
    "resnet-1x1-down": "8,256,56,56,512,1,1,stride=2",
    "resnext-32": "4,256,28,28,256,3,3,pad=1,groups=32",
    "mobilenet-dw": "8,144,56,56,144,3,3,pad=1,groups=144",
    "mobilenet-dw-down": "8,144,56,56,144,3,3,stride=2,pad=1,groups=144",
    "mobilenet-dw5": "8,240,28,28,240,5,5,pad=2,groups=240",
    "mobilenet-pw-out": "8,144,56,56,24,1,1",
    "mobilenet-pw-in": "8,96,14,14,576,1,1",
    "inception-1x7": "8,128,17,17,192,1,7,pad=0x3",
    "inception-5x5": "8,32,28,28,96,5,5,pad=2",
    "unet-valid": "2,64,130,130,64,3,3",
    "dilated-2": "4,128,33,33,128,3,3,pad=2,dilation=2",
    "dilated-4": "4,128,33,33,128,3,3,pad=4,dilation=4",
    "odd-channels": "4,37,45,45,53,3,3,pad=1",
    "odd-image": "3,64,31,97,48,3,3,pad=1",
    "odd-stride-3": "4,48,50,50,80,5,5,stride=3,pad=1",
    "single-image": "1,256,13,13,384,3,3,pad=1",
}
#: Those of a first look.
QUICK = ("resnet-256", "mobilenet-dw-down", "mobilenet-pw-in", "inception-5x5")
