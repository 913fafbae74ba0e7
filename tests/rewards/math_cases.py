r"""Cases for the grading of mathematics, of our own making: `gold # answer # 1` (equal) or `# 0` (different).

Lines without marks name the section that follows.
"""

from __future__ import annotations

TABLE = r"""
numbers
72 # 72 # 1
72 # 72.0 # 1
72 # 72. # 1
72 # +72 # 1
72 # 072 # 1
72 # -72 # 0
72 # 7 # 0
72 # 720 # 0
72 # 7 2 # 0
-5 # 5 # 0
-5 # −5 # 1
0 # -0 # 1
3.21 # 3.210 # 1
3.21 # 3.2100004 # 0
.0000672 # 6.72 \times 10^{-5} # 1
.0000672 # 6.72e-5 # 1
.0000672 # 0.0000673 # 0
2.88 \times 10^{-19} # 2.88e-19 # 1
2.88 \times 10^{-19} # 3.88e-19 # 0
1e-8 # 2e-8 # 0
12345678 # 12345679 # 0
1000000 # 1000000.5 # 0
1000 # 10^3 # 1
1 # 0.9999999 # 0
1 # 0.\overline{9} # 1
10 # 10! # 0
120 # 5! # 1
5 # \text{five} # 1
1009 # \ldots # 0
fractions and decimals
\frac{14}{3} # \frac{28}{6} # 1
\frac{14}{3} # 14/3 # 1
\frac{14}{3} # \dfrac{14}{3} # 1
\frac{14}{3} # 4\frac{2}{3} # 1
\frac{14}{3} # 4 2/3 # 1
\frac{14}{3} # 4.67 # 0
\frac{14}{3} # \frac{3}{14} # 0
\frac43 # 1.333333 # 1
\frac43 # 1.3333 # 0
\frac 59 # \frac{5}{9} # 1
\frac9{19} # 9/19 # 1
\frac13 # 0.\overline{3} # 1
\frac13 # 0.333... # 1
\frac13 # 0.334... # 0
\frac16 # 0.1\overline{6} # 1
-\frac{35}{9} # \frac{-35}{9} # 1
-\frac{35}{9} # \frac{35}{-9} # 1
-\frac{35}{9} # \frac{35}{9} # 0
\frac{1}{2} # ½ # 1
\frac{1}{2} # \tfrac12 # 1
\frac{3}{4} # 3:4 # 1
\frac{3}{4} # 4:3 # 0
1\frac{4}{5} # \frac{9}{5} # 1
1\frac{4}{5} # 1.8 # 1
1\frac{4}{5} # \frac{4}{5} # 0
137 \frac{1}{2} # 137.5 # 1
2\frac12 # 2 \cdot \frac12 # 0
-2\frac12 # -2.5 # 1
-2\frac12 # -1.5 # 0
percent
50\% # 0.5 # 1
50\% # 50 # 1
50\% # \frac12 # 1
50\% # 50 \text{ percent} # 1
50\% # 5\% # 0
50\% # 0.05 # 0
0.5 # 50\% # 1
0.5 # 0.5\% # 0
62.5\% # 62.5 # 1
62.5\% # \frac58 # 1
12 # 12\% # 1
8 \% # 0.08 # 1
33\frac{1}{3}\% # \frac13 # 1
150\% # 1.5 # 1
thousands
10,\!080 # 10080 # 1
10,\!080 # 10,080 # 1
10,\!080 # 10{,}080 # 1
10,\!080 # 10 080 # 1
10,\!080 # 10\,080 # 1
10,\!080 # 1080 # 0
58,500 # 58500 # 1
58,500 # 58.500 # 0
11,\! 111,\! 111,\! 100 # 11111111100 # 1
1,234,567 # 1.234.567 # 1
2 # 2,\!000 # 0
5000000 # 5 \text{ million} # 1
100,200 # 100200 # 1
100,200 # 100, 200 # 1
100, 200 # 300 # 0
1, 234 # 1234 # 0
roots and constants
3\sqrt{13} # \sqrt{117} # 1
3\sqrt{13} # \sqrt{13} \cdot 3 # 1
3\sqrt{13} # 13\sqrt{3} # 0
3\sqrt{13} # 10.8167 # 0
\sqrt{51} # 51^{1/2} # 1
\sqrt{51} # \sqrt[3]{51} # 0
11\sqrt2 # 11 \sqrt{2} # 1
5 \sqrt[3]{4} # \sqrt[3]{500} # 1
\frac{\sqrt{3}}{3} # \frac{1}{\sqrt{3}} # 1
\frac{\sqrt{3}}{3} # \sqrt{\frac{1}{3}} # 1
\sqrt{4} # \pm 2 # 0
\frac{3\sqrt{3}}{4} # \frac34\sqrt3 # 1
2\sqrt{5} # sqrt(20) # 1
288 \pi # 288π # 1
288 \pi # 288 # 0
\pi # 3.14 # 0
\pi # 3.14159265 # 1
1+2\sqrt{3} # 2\sqrt{3}+1 # 1
1+2\sqrt{3} # 1-2\sqrt{3} # 0
2^{1009} # 2 \cdot 4^{504} # 1
2^{1009} # 2^{1009}+1 # 0
2^{1009} # 2^{1008} # 0
e^{2} # \mathrm{e}^2 # 1
\ln 8 # 3 \ln 2 # 1
\log_2 8 # 3 # 1
\frac12 # \sin 30^\circ # 1
\frac{100!}{2^{50}} # \frac{100!}{4^{25}} # 1
9^{9^{9^{9}}} # 9^{9^{9^{8}}} # 0
complex numbers
6 - 5i # -5i + 6 # 1
6 - 5i # 6 + 5i # 0
3+4i # (2+i)^2 # 1
2i # 2\mathrm{i} # 1
2 # 2\mathrm{i} # 0
\sqrt{-4} # 2i # 1
angles and units
90^\circ # 90 # 1
90^\circ # 90 \text{ degrees} # 1
90^\circ # 90° # 1
90 # 90^{\circ} # 1
90^\circ # 80^\circ # 0
\frac{\pi}{6} # 30^\circ # 0
\frac{270}7\text{ degrees} # \frac{270}{7}^\circ # 1
5 \text{ cm} # 5 # 1
5 # 5 \text{ cm} # 1
5 # 5\,\mathrm{cm} # 1
5 # 5 cm # 1
5 # 5 \text{ apples} # 1
5 \text{ cm} # 5 \text{ m} # 0
5 \text{ cm} # 50 \text{ mm} # 1
5 \text{ cm} # 6 \text{ cm} # 0
864 \mbox{ inches}^2 # 864 \text{ square inches} # 1
864 \mbox{ inches}^2 # 864 \text{ in}^2 # 1
15\mbox{ cm}^2 # 15 \text{ cm}^3 # 0
5\text{ m/s} # 5 \frac{\text{m}}{\text{s}} # 1
5\text{ m/s} # 18 \text{ km/h} # 1
5\text{ m/s} # 5 \text{ km/h} # 0
\frac{1}{2}\text{ hour} # 30 \text{ minutes} # 1
45 \text{ minutes} # 45 # 1
\$36 # 36 # 1
\$36 # \$36.00 # 1
\$36 # 36 \text{ dollars} # 1
\$36 # \$35 # 0
\$32,\!348 # 32348 # 1
5.4 \text{ cents} # 5.4 # 1
5.4 \text{ cents} # \$0.054 # 1
5.4 \text{ cents} # \$5.40 # 0
1.6 \mathrm{~cm} # 1.6 \text{ cm} # 1
4.5e33 \mathrm{ergs} \mathrm{s}^{-1} # 4.5 \times 10^{33} # 1
5m # 5 # 0
7 # 7x # 0
names
x=5 # 5 # 1
5 # x=5 # 1
5 # x = 5 \text{ cm} # 1
x=5 # y=5 # 0
7 # m+n=7 # 1
7 # m+n=8 # 0
5 # 2+3=5 # 1
5 # \text{The answer is } 5 # 1
2k+2 # 2(k+1) # 1
2k+2 # 2n+2 # 0
f(x)=2x # 2x # 1
f(x)=2x # f(t)=2t # 1
f(x)=2x # y=2x # 1
f(x)=2x # f(x)=x # 0
f(n)=n, g(n)=1 # f(n)=n, \; g(n)=1 # 1
a=1, b=2 # b=2, a=1 # 1
a=1, b=2 # a=2, b=1 # 0
x=\frac12 \approx 0.5 # \frac12 # 1
m_{\max }=n^{2}-n-1 # n^2-n-1 # 1
expressions
p - q # -q + p # 1
p - q # q - p # 0
(a+5)(b+2) # (b+2)(a+5) # 1
(a+5)(b+2) # ab+2a+5b+10 # 1
(a+5)(b+2) # ab+2a+5b+11 # 0
x^5 - x^4 + x^3 - x^2 + x - 1 # (x-1)(x^4+x^2+1) # 1
x^3+3x-6 # x^3+3x+6 # 0
\cot x # \frac{\cos x}{\sin x} # 1
\frac{x+1}{2} # \frac12(x+1) # 1
\frac{x+1}{2} # x+1/2 # 0
\frac{11+9a}{20} # \frac{9a}{20}+\frac{11}{20} # 1
\sqrt{x^2} # x # 0
|x-1| # |1-x| # 1
\frac{n(n+1)}{2} # \binom{n+1}{2} # 1
\frac{n(n+1)}{2} # \frac{n(n-1)}{2} # 0
\lfloor\frac{2 n-1}{5}\rfloor # \left\lfloor\frac{2n-1}{5}\right\rfloor # 1
\lceil n / 2\rceil+1 # \lfloor n/2 \rfloor + 1 # 0
(-1)^n # (-1)^{n+2} # 1
x^2 # X^2 # 0
\theta # \alpha # 0
\int_0^1 2x \, dx # 1 # 1
\sum_{k=1}^{4} k # 10 # 1
\frac{d !}{2 k(d-k) !} # \frac{d!}{2k \cdot (d-k)!} # 1
equations
y = 2x + 3 # y = 3 + 2x # 1
y = 2x + 3 # 2x - y + 3 = 0 # 1
y = 2x + 3 # y = 2x - 3 # 0
y = 2x # \frac{y}{x} = 2 # 1
5x - 7y + 11z + 4 = 0 # -5x + 7y - 11z = 4 # 1
5x - 7y + 11z + 4 = 0 # 10x - 14y + 22z + 8 = 0 # 1
5x - 7y + 11z + 4 = 0 # 5x - 7y + 11z = 4 # 0
5x - 7y + 11z + 4 = 0 # 5x - 7y + 11z + 4 # 0
x^2+y^2=25 # x^2+y^2-25=0 # 1
(x-1)^2+(y+2)^2=9 # x^2-2x+y^2+4y-4=0 # 1
x^2+y^2=25 # x^2+y^2=5 # 0
tuples
(3, \frac{\pi}{2}) # \left( 3, \pi/2 \right) # 1
(-2,1) # (-2, 1) # 1
(-2,1) # (1,-2) # 0
(-2,1) # -2, 1 # 1
(-2,1) # \{-2,1\} # 0
(6,31,-1) # (6, 31, -1) # 1
(6,31,-1) # (6,31,1) # 0
(6,31,-1) # (6,31) # 0
(1,2) # x=1, y=2 # 1
(1,2) # (x,y)=(1,2) # 1
(1,2) # \begin{cases} x=1 \\ y=2 \end{cases} # 1
(1,2) # [1,2] # 0
(1,2),(3,4) # (3,4), (1,2) # 1
(1,2),(3,4) # (2,1),(4,3) # 0
(1,2),(3,4) # \{(1,2),(3,4)\} # 1
(1,7,103, 105), (3, 5, 101, 107) # (3,5,101,107),(1,7,103,105) # 1
\langle 1,2\rangle # (1,2) # 1
(10^{4}, 10^{3}) # (10000, 1000) # 1
sets and lists
1,-2 # -2, 1 # 1
1,-2 # -2 \text{ and } 1 # 1
1,-2 # x = -2 \text{ or } x = 1 # 1
1,-2 # \{1,-2\} # 1
1,-2 # 1 # 0
1 # 1,-2 # 0
3, 5, 7 # 7,5,3 # 1
3, 5, 7 # 3,5 # 0
3, 5, 7 # 3,5,7,9 # 0
3, 5, 7 # 357 # 0
16,3,1,1 # 1,1,3,16 # 1
16,3,1,1 # 16,3,1 # 0
\{1,2,3\} # \{3,2,1\} # 1
\{1,2,3\} # (1,2,3) # 0
\{1,2,3\} # \{1,2\} # 0
\{1\pm\sqrt{5},-2\} # \{-2, 1+\sqrt5, 1-\sqrt5\} # 1
1 \pm \sqrt{19} # 1+\sqrt{19}, 1-\sqrt{19} # 1
1 \pm \sqrt{19} # 1-\sqrt{19} # 0
\pm 2 # 2, -2 # 1
f(x)=x,f(x)=-x # f(x) = -x \text{ or } f(x) = x # 1
\frac12, \sqrt{x} # \sqrt{x}, 0.5 # 1
\emptyset # \text{no solution} # 1
\text{A,D} # \text{D and A} # 1
\text{A,D} # A # 0
intervals and inequalities
(2,\infty) # x > 2 # 1
(2,\infty) # 2 < x # 1
(2,\infty) # x \ge 2 # 0
(2,\infty) # [2,\infty) # 0
(2,\infty) # x < 2 # 0
(2,\infty) # \{x \mid x > 2\} # 1
(2,5) # x > 2 \text{ and } x < 5 # 1
(2,5) # 2 < x < 6 # 0
(2,5) # 1 < x < 5 # 0
(3,4] # 3 < x \le 4 # 1
(3,4] # 4 \ge x > 3 # 1
(3,4] # [3,4) # 0
x \in [-2,7] # [-2,7] # 1
x \in [-2,7] # -2 \le x \le 7 # 1
x \in [-2,7] # (-2,7) # 0
(-\infty, 2) \cup (3, \infty) # (3,\infty) \cup (-\infty,2) # 1
(-\infty, 2) \cup (3, \infty) # x<2 \text{ or } x>3 # 1
(-\infty, 2) \cup (3, \infty) # (-\infty, 2] \cup [3, \infty) # 0
(-\infty, 2) \cup (3, \infty) # (2,3) # 0
(0,1) \cup (1,2) # 0<x<2, x \neq 1 # 1
(-\infty, 0) \cup\{1\} # (-\infty,0) \cup \{1\} # 1
[0,1] \cup [1,2] # [0,2] # 1
[0,1) \cup (1,2] # [0,2] # 0
k \geqslant 2 # [2, \infty) # 1
k \geqslant 2 # n \ge 2 # 0
\mathbb{R} # (-\infty,\infty) # 1
\mathbb{R} # \text{all real numbers} # 1
\mathbb{R} \setminus \{3\} # x \ne 3 # 1
\left(\frac{3}{5},\frac{8}{3}\right] # (0.6, 8/3] # 1
(-\sqrt{3}, \sqrt{3}) # -\sqrt3 < x < \sqrt3 # 1
matrices
\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix} # \begin{bmatrix} -2 \\ -14 \\ -7 \end{bmatrix} # 1
\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix} # (-2,-14,-7) # 1
\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix} # \begin{pmatrix} -2 & -14 & -7 \end{pmatrix} # 0
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} # \left[\begin{array}{cc} -1 & 0 \\ 0 & -1 \end{array}\right] # 1
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} # \begin{pmatrix} 0 & -1 \\ -1 & 0 \end{pmatrix} # 0
\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix} # \begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix} # 1
bases
52_8 # 52_{8} # 1
52_8 # 52_{\text{eight}} # 1
52_8 # 52 # 1
52_8 # 52_9 # 0
52_8 # 25_8 # 0
52_8 # 42 # 0
42 # 52_8 # 1
42 # 42_8 # 0
152A_{11} # 152A_{11} # 1
words
\text{Evelyn} # Evelyn # 1
\text{Evelyn} # \text{evelyn} # 1
\text{Evelyn} # \text{Angela} # 0
\text{even} # even # 1
\text{even} # odd # 0
\text{ellipse} # \text{an ellipse} # 1
\text{Monday} # \text{Monday.} # 1
east # seat # 0
\text{Yes} # no # 0
\text{(C)} # C # 1
\text{(C)} # \textbf{(C)} # 1
\text{(C)} # \mathrm{(C)} # 1
\text{(C)} # (\text{C}) # 1
\text{(C)} # \textbf{(C)}\ 15 # 1
\text{(C)} # B # 0
15 # \textbf{(C)}\ 15 # 1
\text{3:30 PM} # 3:30 \text{ p.m.} # 1
conditions and remarks
\frac{\pi}{4}+k\pi # \frac{\pi}{4} + k\pi, k \in \mathbb{Z} # 1
2n # 2n \text{ for all } n \ge 1 # 1
2n # 3n \text{ for all } n \ge 1 # 0
further
\frac{1}{2} # \frac{1}{2}\text{ or }0.5 # 1
5 # 5\text{ (approximately)} # 1
5 # \approx 5 # 1
5 # \text{approximately } 5 # 1
\text{2 hours} # 2 # 1
12 # 12^{\text{th}} # 1
12 # 12^{th} # 1
12 # 12\text{th} # 1
(-1, 3) # (-1; 3) # 1
\frac{\sqrt{2}}{2} # \sin 45^\circ # 1
7 # 7 = 7 # 1
-\frac{1}{3} # -0.333 # 0
36\pi # 36 \pi \text{ cubic units} # 1
\frac{3}{2}x # 1.5x # 1
\frac{3}{2}x # 3x/2 # 1
\frac{3}{2}x # \frac{3}{2x} # 0
2^{n+1}-1 # 2\cdot 2^n - 1 # 1
n! # n(n-1)! # 1
120 # {10 \choose 3} # 1
\frac{a}{b} # {a \over b} # 1
\frac{a}{b} # a \div b # 1
\{2\} # 2 # 1
\{\} # \emptyset # 1
x^2 + 2x + 1 = 0 # (x+1)^2=0 # 1
A=(1,2) # (1,2) # 1
1/2 # \frac{1}{2}i # 0
(0,0) # 0 # 0
(-\infty, \infty) # (-\infty, +\infty) # 1
\infty # +\infty # 1
\infty # -\infty # 0
1,2 # 12 # 0
1,2 # 1.2 # 0
4 # |{-4}| # 1
\tan^{-1}(2) # \arctan 2 # 1
\frac{1}{\ln 2} # \log_2 e # 1
e # 2.71828 # 0
\$1{,}000 # 1000 # 1
1000 # \$1,000.00 # 1
\text{A} # \text{Option A} # 1
\text{C} # \text{Choice (C)} # 1
True # \text{true} # 1
\begin{pmatrix}1&2\\3&4\end{pmatrix} # [[1,2],[3,4]] # 1
\begin{pmatrix}1&2\\3&4\end{pmatrix} # \begin{pmatrix}1&3\\2&4\end{pmatrix} # 0
1 \text{ hour} # 60 \text{ minutes} # 1
1 \text{ hour} # 60 # 0
x<-1 \text{ or } x>1 # |x|>1 # 1
(-3,3) # |x|<3 # 1
\frac{\pi}{3}, \frac{5\pi}{3} # x = \frac{\pi}{3}, \frac{5\pi}{3} # 1
x = 2, x = -3 # -3, 2 # 1
(2, -3) # x=-3,y=2 # 0
3 # 3 \text{ or } -3 # 0
0 # zero # 1
12 # \text{12 apples and 3 pears} # 0
\dfrac{7}{8} # \frac{7} {8} # 1
2 # \sqrt[4]{16} # 1
20\% # \frac15\% # 0
20\% # 2 # 0
6000 # 6.0 \times 10^{3} # 1
6000 # 6*10^3 # 1
5 # \overline{AB}=5 # 1
5 # AB = 5 # 1
5 # |AB|=5 # 1
60 # \angle ABC = 60^\circ # 1
60 # m\angle A = 60 # 1
12 # \text{Area} = 12 # 1
\frac14 # P(X=2) = \frac14 # 1
y - 2 = 3(x - 1) # y = 3x - 1 # 1
\ln|x| + C # C + \ln|x| # 1
\frac{x^3}{3}+C # \frac{1}{3}x^3 + C # 1
2\sin x\cos x # \sin 2x # 1
2\sin x\cos x # \sin(2x) # 1
\sec^2 x # 1+\tan^2 x # 1
\cos 2\theta # 1-2\sin^2\theta # 1
n \cdot 2^{n-1} # n2^{n-1} # 1
f^{-1}(x)=\frac{x-1}{2} # \frac{x-1}{2} # 1
f'(x)=2x # 2x # 1
\frac{dy}{dx}=2x # 2x # 1
2x # \frac{dy}{dx}=2x # 1
E[X]=3 # 3 # 1
\frac{1}{2} \text{ and } -\frac{1}{2} # \pm\frac12 # 1
\pm 3i # 3i, -3i # 1
12\text{ cm}, 5\text{ cm} # 12, 5 # 1
15^{\circ}, 75^{\circ} # 15, 75 # 1
2,3 # \text{2 and 3} # 1
A # \text{(A)}\ 5 # 1
-3 \le x < 5 # [-3,5) # 1
1 + i\sqrt{3} # 1+\sqrt{3}i # 1
1+\sqrt3 i # 2\left(\cos\frac{\pi}{3}+i\sin\frac{\pi}{3}\right) # 1
1+\sqrt3 i # 2e^{i\pi/3} # 1
4x^3-3x # 4*x**3 - 3*x # 1
4x^3-3x # 4x³−3x # 1
25\% # 0.25\% # 0
-4 # (-4) # 1
5 # \boxed{5} # 1
5 # $5$ # 1
5 # \(5\) # 1
3 # \textbf{3} # 1
3 # \mathbf{3} # 1
3 # {\color{red}3} # 1
3 # \textcolor{blue}{3} # 1
3 # \displaystyle 3 # 1
3 # 3\\ # 1
3 # \underline{3} # 1
\frac{3}{5} # \left(\frac{3}{5}\right) # 1
\sqrt{x+1} # (x+1)^{1/2} # 1
\sqrt{x+1} # \sqrt{x}+1 # 0
3\text{ and }4 # 4, 3 # 1
\text{12 noon} # \text{noon} # 0
x=2\pi k # 2\pi k # 1
x = \frac{\pi}{2}+2\pi k # \frac{\pi}{2}+2\pi n # 0
8\text{ inches} # 8" # 1
6'2'' # 6'2'' # 1
\frac{2}{\sqrt{5}} # \frac{2\sqrt{5}}{5} # 1
0.05 # 5\% # 1
5 # \mathrm{5} # 1
5 # \text{5 meters} # 1
20\text{ mph} # 20 \text{ miles per hour} # 1
20\text{ mph} # 20 \text{ miles/hour} # 1
20\text{ mph} # 20 # 1
3x+2y=6 # y = -\frac32x+3 # 1
3x+2y=6 # \frac{x}{2}+\frac{y}{3}=1 # 1
3x+2y=6 # 2x+3y=6 # 0
x=3 # 3=x # 1
2 # \{2, 3\} # 0
-1 # i^2 # 1
\frac{4}{5} # .8 # 1
\frac{4}{5} # 0,8 # 0
2a+b # b+2a # 1
2a+b # 2A+B # 0
\frac{1}{x+y} # (x+y)^{-1} # 1
xy # yx # 1
xy # x+y # 0
\text{Tuesday} # \text{on Tuesday} # 0
100 # 100\text{ cm}^2 # 1
100\text{ cm}^2 # 100\text{ square centimeters} # 1
100\text{ cm}^2 # 0.01\text{ m}^2 # 1
100\text{ cm}^2 # 1\text{ m}^2 # 0
2\text{ kg} # 2000\text{ g} # 1
7 # VII # 0
1 # 1^{\circ} # 1
\frac{5\pi}{6} # 150^{\circ} # 0
(2,3)\cup(3,4) # (2,4) # 0
(2,3]\cup(3,4) # (2,4) # 1
x\in\{1,2\} # \{1,2\} # 1
x\in\{1,2\} # x=1 \text{ or } x=2 # 1
x\in\{1,2\} # x = 1, 2 # 1
[1,2] # \{1,2\} # 0
[1,2] # 1,2 # 0
(1,2] # 1,2 # 0
1024 # 2^{10} # 1
0.\overline{36} # \frac{4}{11} # 1
0.\overline{36} # 0.36 # 0
0.3\overline{6} # \frac{11}{30} # 1
4.\overline{3} # \frac{13}{3} # 1
1000000 # 1{,}000{,}000 # 1
1000000 # 1\,000\,000 # 1
1000000 # 1 000 000 # 1
1000000 # 100,0000 # 0
-2 # \{-2\} # 1
\left(-\infty,-\frac{1}{2}\right]\cup[3,\infty) # x\le-\frac12 \text{ or } x\ge3 # 1
\left(-\infty,-\frac{1}{2}\right]\cup[3,\infty) # x\le-0.5, x\ge3 # 1
\text{no real roots} # \text{no real solutions} # 0
17\text{ remainder }3 # 17 # 0
3+2i # 3+2j # 0
\frac{1}{2}\ln 2 # \ln\sqrt{2} # 1
\sqrt{2}+\sqrt{3} # \sqrt{5+2\sqrt{6}} # 1
\sqrt{2}+\sqrt{3} # \sqrt{5} # 0
\sqrt[3]{-8} # -2 # 1
3 \pm \sqrt{5} # \frac{6\pm\sqrt{20}}{2} # 1
3 \pm \sqrt{5} # \{3+\sqrt5\} # 0
a \ge b # b \le a # 1
money and markdown
\text{\$}18.90 # 18.90 # 1
18.90 # \text{\$}18.90 # 1
\$1.50 # 150\text{ cents} # 1
\$1.50 # 1.05 # 0
1250 # £1250 # 1
12 # **12** # 1
12 # `12` # 1
12 # \ 12 \  # 1
5 # 5 \checkmark # 1
12 # 12! # 0
units again
2\text{ hours} # 2 h # 1
2\text{ hours} # 2 m # 0
12 # 12 in. # 1
12 # 12\text{ cm} = 0.12\text{ m} # 1
9.8\text{ m/s}^2 # 9.8\ \frac{\text{m}}{\text{s}^2} # 1
9.8\text{ m/s}^2 # 9.8\ \frac{\text{km}}{\text{s}^2} # 0
9.8\text{ m/s}^2 # 9.8\ \mathrm{m\,s^{-2}} # 1
3.0\times 10^8 \text{ m/s} # 3.0\times 10^5\text{ km/s} # 1
1.2\times10^{5} # 1.2x10^5 # 1
1.2\times10^{5} # 1.2E+05 # 1
1.2\times10^{5} # 1.2x10^6 # 0
0.(3) # \frac13 # 1
0.1\overline{23} # \frac{122}{990} # 1
numbers in words
21 # \text{twenty-one} # 1
30 # thirty # 1
105 # \text{one hundred and five} # 1
-3 # \text{negative three} # 1
23 # \text{two three} # 0
labels
5 # \text{Total: } 5 # 1
5 # Total: 5 # 1
5 # \text{Area: } 5\text{ cm}^2 # 1
(3,4) # \text{the point }(3,4) # 1
(3,4) # P(3,4) # 1
(3,4) # P(4,3) # 0
10 # C(5,2) # 1
5 # \text{not } 5 # 0
5 # \text{at least } 5 # 0
5 # 5 \text{ is wrong, the answer is } 6 # 0
(a,b)=(2,3) # b=3, a=2 # 1
(a,b)=(2,3) # a=3, b=2 # 0
choices
C # C) # 1
C # C. 15 # 1
C # C: 15 # 1
C # D: 15 # 0
15 # C: 15 # 1
\text{(E)}\ 12 # \text{(D)}\ 12 # 0
\text{(A)}, \text{(B)} # \text{(B)}, \text{(A)} # 1
\text{I and III} # I, III # 1
\text{I, II} # \text{I, II, III} # 0
ratios and times
10:00 # 5:00 # 0
3:00 # 03:00 # 1
1:10 # 2:20 # 1
3:4 # 3 to 4 # 1
3:4 # 4 to 3 # 0
bases again
11_{10} # 1011_2 # 1
FF_{16} # ff_{16} # 1
FF_{16} # 254_{10} # 0
regions again
(0,1)\cup(2,3) # (0,1),(2,3) # 1
(0,1)\cup(2,3) # (0,1),(2,4) # 0
(-\infty,-1)\cup(1,\infty) # \mathbb{R}\setminus[-1,1] # 1
(-\infty,-1)\cup(1,\infty) # \mathbb{R}\setminus(-1,1) # 0
(0,1]\cup[4,5) # (0,5)\setminus(1,4) # 1
[0,5] # [0,10]\cap[-3,5] # 1
[0,5] # [0,10]\cap(-3,5) # 0
(1,2)\cup(3,4) # (1,2)\cap(3,4) # 0
(0,\infty) # \mathbb{R}^+ # 1
[0,\infty) # \mathbb{R}^+ # 0
[0,\infty) # \mathbb{R}_{\ge 0} # 1
(-\infty,0) # \mathbb{R}^{-} # 1
\{1\} \cup (3,\infty) # x = 1, x>3 # 1
\{1\} \cup (3,\infty) # x>3 # 0
x \geq 0, y \geq 0 # y\ge0, x\ge0 # 1
x \geq 0, y \geq 1 # y\ge0, x\ge1 # 0
x > 1, y > 2 # x > 2 # 0
\mathbb{Z} # \text{all integers} # 1
vectors
(1,2,3) # \mathbf{i}+2\mathbf{j}+3\mathbf{k} # 1
(1,2,3) # \hat{i}+3\hat{j}+2\hat{k} # 0
3\mathbf{i}-\mathbf{j} # \langle 3,-1\rangle # 1
\begin{pmatrix}2&4\\6&8\end{pmatrix} # 2\begin{pmatrix}1&2\\3&4\end{pmatrix} # 1
\begin{pmatrix}2&4\\6&8\end{pmatrix} # 3\begin{pmatrix}1&2\\3&4\end{pmatrix} # 0
\begin{pmatrix}-1\\-2\end{pmatrix} # -\begin{pmatrix}1\\2\end{pmatrix} # 1
\overline{AB} # \overline{BA} # 1
\overline{AB} # \overline{CD} # 0
at sample points
\lfloor x \rfloor # \lceil x \rceil # 0
\lfloor 2x \rfloor # 2\lfloor x \rfloor # 0
\lfloor x \rfloor + \lfloor x+\frac12 \rfloor # \lfloor 2x \rfloor # 1
\left\lceil\frac{n}{2}\right\rceil # \left\lfloor\frac{n+1}{2}\right\rfloor # 1
\sqrt{x}\sqrt{y} # \sqrt{xy} # 1
\sqrt{x}\sqrt{y} # \sqrt{x+y} # 0
\sqrt{\frac{2gh}{m}} # \frac{\sqrt{2 g h}}{\sqrt{m}} # 1
y=x^2+C # x^2 + c # 1
x^2+C # x^2+D # 0
x^2+C # x^2 # 0
more spellings
\frac{7}{12} # \nicefrac{7}{12} # 1
\frac{7}{12} # 0.58\overline{3} # 1
(-\infty,2]\cup[5,\infty) # x \notin (2,5) # 1
(-\infty,2]\cup[5,\infty) # x \notin [2,5] # 0
-1<x<4 # x>-1\ \&\ x<4 # 1
(1,1),(2,4) # [(2,4),(1,1)] # 1
(1,1),(2,4) # [(1,2),(1,4)] # 0
-2,0,2 # x=0, x=\pm 2 # 1
-2,0,2 # x=1, x=\pm 2 # 0
30^\circ # 30^{o} # 1
100\text{ m}^2 # 100 m^2 # 1
100\text{ m}^2 # 100 m^3 # 0
D # \text{The answer is D} # 1
\text{Friday} # "Friday" # 1
\text{Friday} # \text{Friday the 13th} # 0
\log_{10} 2 # \lg 2 # 1
\log_{10} 2 # \ln 2 # 0
101_2 # (101)_2 # 1
-3 # minus 3 # 1
decoration
\frac{9}{4} # \boldsymbol{\dfrac{9}{4}} # 1
\frac{9}{4} # \therefore \frac{9}{4} # 1
\frac{9}{4} # \implies x=\frac94 # 1
\frac{9}{4} # \frac{9}{4} \quad \blacksquare # 1
\frac{9}{4} # {}\frac{9}{4} # 1
\frac{9}{4} # 2{\tfrac14} # 1
\frac{9}{4} # \text{$\frac{9}{4}$} # 1
\frac{9}{4} # \text{$\frac{4}{9}$} # 0
bounds
144 # \text{144 or more} # 0
144 # 144\text{ or more} # 0
144 # \text{at least } 144 # 0
144 # 144\text{ oranges} # 1
\left[-1,\frac{1}{2}\right] # -1 \leq f(x) \leq 1/2 # 1
\left[-1,\frac{1}{2}\right] # -1 < f(x) \leq 1/2 # 0
(-\infty,3)\cup(3,\infty) # \text{all real numbers except }3 # 1
(-\infty,3)\cup(3,\infty) # \text{all real numbers except }2 # 0
(-\infty,3)\cup(3,\infty) # \mathbb{R}-\{3\} # 1
\text{Alice and Bob} # \text{Bob and Alice} # 1
\text{Alice and Bob} # \text{Alice} # 0
\text{red, blue} # blue, red # 1
\frac{3}{7} # \frac{3}{7}\text{ not }\frac{7}{3} # 0
\frac{3}{7} # \frac{3}{7}\text{ where }n\text{ is not even} # 1
\text{does not exist} # \text{DNE} # 1
25 # 25.0000000001 # 0
0.3 # 0.30000000000000004 # 1
25 # \text{The maximum value is }25 # 1
2x+3 # 2x+3, x\neq 1 # 1
(2,\infty) # \text{all real numbers greater than }2 # 1
(2,\infty) # \text{all real numbers less than }2 # 0
[2,\infty) # \text{all real numbers greater than or equal to }2 # 1
(2,\infty) # \text{all } x>2 # 1
\{2,3,5,7\} # [2,3,7,5] # 1
\{2,3,5,7\} # [2,3,5] # 0
4.5\text{ hours} # 4\text{ hours }30\text{ minutes} # 1
4.5\text{ hours} # 4\text{ hours }20\text{ minutes} # 0
\$4.50 # 4 dollars and 50 cents # 1
1.5\text{ L} # 1500\text{ mL} # 1
2,500 # (2,500) # 0
(-\infty,-5)\cup(-5,5)\cup(5,\infty) # x\ne\pm5 # 1
(-\infty,-5)\cup(-5,5)\cup(5,\infty) # x\neq 5, x\neq -5 # 1
(-\infty,-5)\cup(-5,5)\cup(5,\infty) # x\ne 5 # 0
a_n = 3n-1 # a_k=3k-1 # 1
a_n = 3n-1 # a_k=3k+1 # 0
a_n = 3n-1 # b_n=3n-1 # 0
two guesses in one answer
1 # 1 cm = 7 cm # 0
1 cm # 1 cm = 7 cm # 0
7 # 1 cm = 7 cm # 1
7 cm # 1 cm = 7 cm # 1
1 # 1\text{ cm} = 7\text{ kg} # 0
1 # 1\text{ apples} = 7\text{ pears} # 0
1 # 1^\circ = 7^\circ # 0
1 # \$1 = \$7 # 0
7 # \$1 = \$7 # 1
100 # 100 cm = 1 m # 1
1 # 100 cm = 1 m # 1
100\text{ cm} # 100 cm = 1 m # 1
1\text{ m} # 100 cm = 1 m # 1
2\text{ m} # 100 cm = 1 m # 0
5\text{ mi} # 5\text{ mi} = 8.05\text{ km} # 1
8.05\text{ km} # 5\text{ mi} = 8.05\text{ km} # 1
5\text{ mi} # 5\text{ mi} = 9.05\text{ km} # 0
1 # 1 \approx 7 # 0
7 # 1 \approx 7 # 1
1 # x = 1 \approx 7 # 0
1 # 1 = 1 cm \approx 7 # 0
1 # 1 \approx 2 \approx 7 # 0
99 # 99 \approx 100 # 0
7.5 # 7.5 \approx 8 # 0
0.14 # 0.14 \approx 0.1 # 0
1\text{ m} # 1\text{ m} = 1\text{ s} # 0
1020 # 1020 \approx 2^{10} # 0
0.432 # 0.432 \approx \frac{3}{7} # 0
0.432 # 0.432 \approx 3/7 # 0
\frac{22}{7}\text{ million} # \frac{22}{7}\text{ million} \approx 3.14\text{ million} # 1
\frac{1}{3} # \frac{1}{3} \approx 0.33 # 1
0.33 # \frac{1}{3} \approx 0.33 # 1
\frac{2}{3} # \frac{2}{3} \approx 0.67 # 1
\frac{2}{3} # \frac{2}{3} \approx 0.66 # 1
\frac{2}{3} # \frac{2}{3} \approx 0.76 # 0
\frac{2}{3} # 0.667 \approx \frac{2}{3} # 1
\frac{1}{8} # \frac{1}{8} \approx 12.5\% # 1
-\frac{1}{3} # -\frac{1}{3} \approx -0.33 # 1
-\frac{1}{3} # -\frac{1}{3} \approx 0.33 # 0
149.6 # 149.6 \approx 150 # 1
\sqrt{2}\cdot 10^6 # \sqrt{2}\cdot 10^6 \approx 1.41 \times 10^6 # 1
(\frac13,\frac23) # (\frac13,\frac23) \approx (0.33, 0.67) # 1
(\frac13,\frac23) # (\frac13,\frac23) \approx (0.33, 0.77) # 0
\pm\sqrt{2} # \pm\sqrt{2} \approx \pm 1.41 # 1
x+1 # x+1 \approx 7 # 0
1 # 1 \approx x # 1
1 # 1 = 2 = 7 # 0
7 # 1 = 2 = 7 # 1
1 # x = 1 = 7 # 0
1 # 1 \text{ or } 7 # 0
7 # 1 \text{ or } 7 # 0
1 # 1, 7 # 0
7 # 1, 7 # 0
A # (A) (B) # 0
B # (A) (B) # 0
A # (A) B # 0
B # (A) B # 0
A # A: B: C # 0
C # A: B: C # 0
A # (A) and (C) # 0
A, C # (A) and (C) # 1
A # (A) A, B # 0
A, B # (A) A, B # 1
A # (A) (A) # 1
A # (A) 7 # 1
B # (B) I and II # 1
\text{I and II} # (B) I and II # 1
7 # (A) 7 # 1
regions without a name
t > 2 # \text{all real numbers greater than }2 # 1
y > 2 # \text{all real numbers greater than }2 # 1
v > 3 # \text{all real numbers greater than }3 # 1
v \ge 3 # \text{all real numbers greater than or equal to }3 # 1
v \ge 3 # \text{all real numbers greater than }3 # 0
t < 2 # \text{all real numbers less than }2 # 1
t > 2 # \text{all real numbers greater than }3 # 0
t > 2 # x > 2 # 0
constants of integration
A+B+C # A+B+k # 0
A+B+C # A+B+K # 0
A+B+C # A+B+c # 0
A+B+k # A+B+C # 0
x+A+C # x+A+k # 0
C # k # 0
C # K # 0
k # C # 0
n+C # n+k # 0
n+k # n+C # 0
e^x+c # e^x+C # 1
e^x+C # e^x+c # 1
e^x+C # e^x+K # 1
e^x+k # e^x+c # 0
\ln|x|+C # k+\ln|x| # 1
\sin\theta+C # \sin\theta+c # 1
2\sin(t+1)+C # 2\sin(t+1)+c # 1
x(y+C) # x(y+k) # 0
Cx+C # Cx+k # 0
kx+C # kx+k # 0
x+C # x+2k # 0
x+C # x+Ck # 0
\frac{1}{x+C} # \frac{1}{x+k} # 0
e^x+C # e^x # 0
e^x+C # e^x+2c # 0
"""


def cases() -> list[tuple[str, str, str, bool]]:
    """(section, gold, answer, whether they are equal)."""
    section, found = "", []
    for line in TABLE.strip().splitlines():
        if line.count(" # ") == 2:
            gold, answer, verdict = line.split(" # ")
            found.append((section, gold, answer, verdict == "1"))
        else:
            section = line
    return found
